"""What a person would pick instead to read ratings: a linear model over pieces of words.

    python -m bench.linear_model --data_dir=data/movie                                it alone
    python -m bench.linear_model --data_dir=data/movie --model_path=out/movie         beside ours
    python -m bench.linear_model --data_dir=data/shift --read_dir=data/long --model_path=out/shift
    python -m bench.linear_model --data_dir=data/movie --texts=negative.txt,positive.txt

    train.txt → how often each run of 1 to 4 characters comes in a text → tf-idf
    → logistic regression
    validation.txt → negative or positive? → the scores of eval.py

It is trained on the negative and positive texts, and rates such texts alone. It needs scikit-learn:
pip install scikit-learn
"""
import math
from pathlib import Path

import numpy as np

from configurator import configure
from parts.corpus import read_split
from parts.errors import UserError, run_script
from parts.folder import load_model
from parts.machine import keep_freed_memory, select_device
from parts.scoring import positive_log_odds, sentiment_scores
from parts.vocabulary import load_vocabulary

data_dir = 'data/kr3'  # whose train.txt to learn from
read_dir = ''          # whose validation.txt to read ('': that of data_dir)
model_path = ''        # models of ours that read the same, with commas between ('': none)
piece = 0              # tokens that our models read at a time, the mean counts (0: all they can)
n_texts = 0            # read so many texts, the first ones (0: all)
texts = ''             # or say of files, one text a line, how many read as negative, as positive
device = 'auto'        # of our models: cuda, mps, cpu, or auto: the first of them that is there
configure(globals())

N_FEATURES = 2 ** 20   # places that the runs of characters are hashed to
PASSES = 5             # over the training texts
PENALTY = 1e-6         # on the squared weights: the best of 1e-5, 1e-6, 1e-7

COLUMNS = {            # heading → key of sentiment_scores()
    'accuracy': 'sentiment_accuracy',
    'balanced': 'sentiment_balanced_accuracy',
    'at even odds': 'sentiment_balanced_accuracy_at_even_odds',
    'macro-F1': 'sentiment_macro_f1',
    'ROC AUC': 'sentiment_auc',
}


def main():
    train_path = Path(data_dir, 'train.txt')
    if texts:
        read_files(train_path)
        return
    rated = list(read_split(Path(read_dir or data_dir, 'validation.txt')))
    if n_texts:
        rated = rated[:n_texts]
    rated = [(rating, text) for rating, text in rated if rating in (0, 1)]
    truth = [rating for rating, _ in rated]
    if len(set(truth)) < 2:
        raise UserError('there are no negative, or no positive, texts to read')
    print(f'{len(rated):,} texts, {sum(truth):,} of them positive\n')
    print(f'{"":30}' + ''.join(f'{heading:>14}' for heading in [*COLUMNS, 'at the best']))
    print_scores('a linear model', truth, *linear_log_odds(train_path, [text for _, text in rated]))
    for path in model_path.split(',') if model_path else []:
        print_scores(path, truth, *our_log_odds(path, [text for _, text in rated]))


def print_scores(name, truth, log_odds, even_log_odds):
    """One line of the table."""
    scores = sentiment_scores(truth, log_odds, even_log_odds)
    values = [*map(scores.get, COLUMNS.values()), at_best_threshold(truth, log_odds)]
    print(f'{name:30}' + ''.join(f'{value:14.3f}' for value in values), flush=True)


def at_best_threshold(truth, log_odds):
    """The highest balanced accuracy of any threshold: what a better P(rating) could give."""
    truth = np.array(truth)[np.argsort(log_odds)]
    negative_below = np.cumsum(1 - truth) / np.sum(1 - truth)
    positive_above = 1 - np.cumsum(truth) / np.sum(truth)
    return (negative_below + positive_above).max() / 2


def read_files(train_path):
    """Print how many lines of each file in `texts` read as negative and as positive."""
    for name in texts.split(','):
        try:
            lines = Path(name).read_text(encoding='utf-8').splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f'{name} cannot be read: {error}') from None
        lines = [line for line in lines if line]
        if not lines:
            raise UserError(f'{name} is empty')
        _, even_log_odds = linear_log_odds(train_path, lines)
        share = sum(x > 0 for x in even_log_odds) / len(lines)
        print(f'{name}: {len(lines):,} texts, {1 - share:.1%} read as negative, '
              f'{share:.1%} as positive')


# --- the two readers ---

def linear_log_odds(train_path, wanted):
    """log P(positive | text) less log P(negative | text) of the wanted texts, and the same at even
    odds, which leave out that one rating is commoner. Raises UserError.
    """
    try:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from sklearn.linear_model import SGDClassifier
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError('this needs scikit-learn: pip install scikit-learn') from None
    rated = [(rating, text) for rating, text in read_split(train_path) if rating in (0, 1)]
    ratings = [rating for rating, _ in rated]
    n_positive = sum(ratings)
    n_negative = len(ratings) - n_positive
    if not n_positive or not n_negative:
        raise UserError(f'{train_path} has no negative or no positive text: nothing to learn')
    model = make_pipeline(
        HashingVectorizer(analyzer='char_wb', ngram_range=(1, 4), n_features=N_FEATURES,
                          alternate_sign=False, norm=None),
        TfidfTransformer(sublinear_tf=True),
        SGDClassifier(loss='log_loss', alpha=PENALTY, max_iter=PASSES, tol=None, average=True,
                      class_weight='balanced', random_state=0))
    model.fit([text for _, text in rated], ratings)
    even_log_odds = model.decision_function(wanted)           # 'balanced': both ratings weigh alike
    prior = math.log(n_positive / n_negative)
    return (even_log_odds + prior).tolist(), even_log_odds.tolist()


def our_log_odds(path, wanted):
    """The same of a model folder. Raises UserError."""
    its_device = select_device(device)
    keep_freed_memory(its_device)
    model, _ = load_model(path, its_device)
    if piece:
        model.config.chunk_size = piece + 2  # with </s> and <s>
    vocabulary = load_vocabulary(path)
    return positive_log_odds(model, vocabulary.rating_ids, vocabulary.encode(wanted))


if __name__ == '__main__':
    run_script(main)
