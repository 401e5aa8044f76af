"""What a person would pick instead to read ratings: a linear model over pieces of words.

    train.txt → how often each run of 1 to 4 characters comes in a review, tf-idf → logistic
    regression

It needs scikit-learn, which only `eval.py --baseline=true` asks for.
"""
import math

from parts.corpus import read_split
from parts.errors import UserError

N_FEATURES = 2 ** 20       # places that the runs of characters are hashed to
PASSES = 5                 # over the training reviews
PENALTY = 1e-6             # on the squared weights: the best of 1e-5, 1e-6, 1e-7, see docs/LOG.md


def linear_log_odds(train_path, texts):
    """log P(positive | text) less log P(negative | text) of each text, and the same at even odds.

    train_path: a train.txt, of which the negative and positive reviews are learned from. Raises
    UserError.
    """
    try:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from sklearn.linear_model import SGDClassifier
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError('--baseline=true needs scikit-learn: pip install scikit-learn') from None
    rated = [(rating, text) for rating, text in read_split(train_path) if rating in (0, 1)]
    ratings = [rating for rating, _ in rated]
    n_positive = sum(ratings)
    n_negative = len(ratings) - n_positive
    if not n_positive or not n_negative:
        raise UserError(f'{train_path} has no negative or no positive review, '
                        'so --baseline=true has nothing to learn')
    model = make_pipeline(
        HashingVectorizer(analyzer='char_wb', ngram_range=(1, 4), n_features=N_FEATURES,
                          alternate_sign=False, norm=None),
        TfidfTransformer(sublinear_tf=True),
        SGDClassifier(loss='log_loss', alpha=PENALTY, max_iter=PASSES, tol=None, average=True,
                      class_weight='balanced', random_state=0))
    model.fit([text for _, text in rated], ratings)
    even_log_odds = model.decision_function(texts)            # 'balanced': both count alike
    prior = math.log(n_positive / n_negative)
    return (even_log_odds + prior).tolist(), even_log_odds.tolist()
