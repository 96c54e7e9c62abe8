"""A model trained on Wikipedia, asked about Amazon reviews, then retrained with 300 examples of those: gain and loss.

Both trainings begin at the base, see the same Wikipedia questions once and use the same settings; the second has the
300 in addition. No article or review is in both training and test. Both are exported, and answer on the engine that
serves with the right paragraph given.
"""

from benchmarks.machine import home

AIM = "the gain on reviews above 0 with its interval, and what wiki loses"
WIKI_EXAMPLES, AMAZON_EXAMPLES = 1200, 300
HELD_ARTICLES, HELD_REVIEWS, ASKED = 16, 150, 600
WORKERS, SEED = 2, 0


def met(value: dict) -> bool:
    return value["amazon"]["change"]["f1"][1] > 0


def measure() -> dict:
    """[mean, low, high] before and after retraining and of the paired difference, 95% intervals by article."""
    with home() as folder:
        from benchmarks import answered, tuning
        from tasks.training import Training

        wiki, wiki_test = tuning.apart(tuning.questions(tuning.WIKI), HELD_ARTICLES, SEED)
        amazon, amazon_test = tuning.apart(tuning.questions(tuning.AMAZON), HELD_REVIEWS, SEED)
        before = tuning.some(wiki, WIKI_EXAMPLES, SEED)
        added = tuning.some(amazon, AMAZON_EXAMPLES, SEED)
        asked = {"wiki": tuning.some(wiki_test, ASKED, SEED), "amazon": tuning.some(amazon_test, ASKED, SEED)}
        training = Training(minutes=None, passes=1, seed=SEED)
        found, trained_s = {}, {}
        for name, learned in (("before", before), ("after", before | added)):
            done = tuning.train(folder / name, tuning.made(learned, 1, SEED), None, training, WORKERS)
            model = tuning.published(folder / name, training, len(learned))
            found[name] = {domain: answered.scored(model, bound) for domain, bound in asked.items()}
            trained_s[name] = round(done["elapsed"], 1)
    value = {
        domain: {
            "before": answered.levels(found["before"][domain], bound),
            "after": answered.levels(found["after"][domain], bound),
            "change": answered.gains(found["after"][domain], found["before"][domain], bound),
        }
        for domain, bound in asked.items()
    }
    n = {domain: {"asked": len(bound), "articles": tuning.articles(bound)} for domain, bound in asked.items()}
    n |= {"examples": {"wiki": len(before), "amazon": len(added)}}
    return {"value": value | {"trained_s": trained_s}, "n": n, "against": "no retraining", "limit": None}
