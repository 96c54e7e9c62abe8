"""The endpoint's app with an assistant that an upstream answers for, through the replica that would hold its engine."""

from dataclasses import replace

from data.records import Prompt, as_json
from serving.endpoint import failed, sent
from serving.engine.upstream import upstream_model
from serving.replica import ModelReplica
from tests.fake_upstream import Upstream
from tests.test_app import LIVE, Stack


class Elsewhere(Stack):
    """A Stack whose assistant `helpdesk` is served by `upstream`."""

    def __init__(self, folder, upstream: Upstream, **chosen):
        live = replace(LIVE, model=upstream_model(upstream.name), prompt=Prompt(chat="messages"))
        super().__init__(folder, live, **chosen)
        self.replica, self.model = ModelReplica(as_json(live.model)), self

    async def generate(self, model, prompt, decoding):
        pieces = self.replica.stream(prompt, sent(decoding))
        try:
            async for piece in pieces:
                yield piece
        except (ValueError, RuntimeError) as error:
            raise failed(model, error) from error
        finally:
            await pieces.aclose()

    def close(self):
        self.log.close()
        self.replica.engine.close()
