"""Text → ids: fetch reviews, clean and split them, make a vocabulary, write the reviews as numbers.

    kr3 | kr3_raw | nsmc | hate_speech | demo | a file
      → clean, split by a hash of the text     <output_dir>/train.txt, validation.txt
      → a vocabulary                           <output_dir>/<mode>/tokenizer.model
      → the stream of ids                      <output_dir>/<mode>/train.bin, val.bin, meta.json,
                                               train_offsets.bin, val_offsets.bin

Two reviews, the first positive, all the way (with the vocabulary of the demo):

    lines     1<TAB>맛있었어요!              0<TAB>너무 짜요
    pieces    ▁맛있었어요 !                 ▁너무 ▁짜 요
    stream    </s> <pos> ▁맛있었어요 ! </s> <neg> ▁너무 ▁짜 요 </s>
    ids       2    4     560      3577 2    3     276  2009 3517 2      uint16

Everything passes in batches over up to eight cores, so memory stays flat however long the text.
"""
import json
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from configurator import configure
from parts.corpus import KNOWN_SOURCES, LICENCES, RATINGS, split_sources
from parts.errors import UserError, print0, run_script
from parts.checkpoint import atomic_write, read_json
from parts.readers import FILE_TYPES
from parts.stream import StreamWriter, encode_file
from parts.vocabulary import Characters, SentencePiece, find_vocabulary

source = 'kr3'        # kr3, kr3_raw, nsmc, hate_speech, demo, a file, or several with commas
output_dir = ''       # where to write ('': data/<source>)
data_dir = ''         # with train.txt and validation.txt: only make ids of them ('': from source)
val_ratio = 0.1       # share of the reviews kept for validation
mode = 'tokenizer'    # tokenizer: sub-words; manual: one id per character
model_name = ''       # '': learn sub-words; or tokenizer.json, model folder, skt/kogpt2-base-v2
vocab_size = 8000     # pieces of the SentencePiece vocabulary
min_count = 2         # manual: characters seen fewer times in train.txt become <unk>
chunk_size = 256      # only to report how many reviews fit whole into a row of so many tokens
batch_size = 5000     # reviews at a time: more is faster and takes more memory
encoding = 'utf-8-sig'  # of .csv .tsv .jsonl .txt sources; old Korean files are often cp949
n_reviews = 100000    # how many reviews the demo grammar writes
seed = 0              # of the demo grammar
configure(globals())

MOST_IDS = 65536  # what uint16 can tell apart


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no .part file stays
    check_settings()
    sources = name_sources()
    folder = Path(output_dir or data_dir or f'data/{"+".join(sources)}')
    texts = Path(data_dir or folder)
    check_texts(texts)
    try:
        vocab = given_vocabulary()  # first, because what is wrong with it is known in a second
        if not data_dir:
            split_sources(sources, folder, val_ratio, encoding=encoding, batch_size=batch_size,
                          n_reviews=n_reviews, seed=seed)
        if vocab is None:
            vocab = train_vocabulary(texts / 'train.txt')
        print_size(vocab)
        write_tokens(vocab, texts, folder / mode)
        copy_texts(texts, folder)
    except OSError as error:  # no space left, no permission, a file where a folder should be
        raise UserError(error) from None
    except KeyboardInterrupt:
        raise UserError('interrupted; what was there before is there still') from None
    print0(f'ready: python train.py {training_flags(folder)}')


def training_flags(folder):
    """What train.py is to be told: the config file that is made for this folder, or names."""
    name = folder.resolve().name
    manual = mode == 'manual'
    config = Path('config', f'{name}_manual.py' if manual else f'{name}.py')
    if folder == Path('data', name) and config.exists():
        return config
    return f'--data_dir={folder} --out_dir=out/{name}' + (' --mode=manual' if manual else '')


# --- before any work ---

def check_settings():
    """Raise UserError where a setting has no meaning."""
    if mode not in ('tokenizer', 'manual'):
        raise UserError(f"mode='{mode}': it is 'tokenizer' or 'manual'")
    if not 0 < val_ratio < 1:
        raise UserError(f'val_ratio={val_ratio}: it takes more than 0 and less than 1')
    if not 300 <= vocab_size <= MOST_IDS:  # 262 of them are bytes and control tokens
        raise UserError(f'vocab_size={vocab_size}: it takes 300 to {MOST_IDS}')
    if min(batch_size, n_reviews) < 1:
        raise UserError('batch_size and n_reviews take 1 or more')


def name_sources():
    """{name: source} of all that --source= lists, as {'reviews': 'data/reviews.csv'}."""
    sources = {}
    for one in source.split(','):
        path = Path(one)
        is_file = path.is_file() and path.suffix.lower() in FILE_TYPES
        if one not in KNOWN_SOURCES and not is_file:
            raise UserError(f"source '{one}' is neither one of {', '.join(KNOWN_SOURCES)} "
                            f'nor a {" ".join(FILE_TYPES)} file that is there')
        name = one if one in KNOWN_SOURCES else path.stem
        if name in sources:
            raise UserError(f'{sources[name]} and {one} would both be written to '
                            f'{name}_train.txt; rename one')
        sources[name] = one
    return sources


def check_texts(texts):
    """With --data_dir, the texts must be there."""
    there = (texts / 'train.txt').exists() and (texts / 'validation.txt').exists()
    if data_dir and not there:
        raise UserError(f'{texts} has not both of train.txt and validation.txt; '
                        f'leave --data_dir out to make them from --source=')


# --- the vocabulary ---

def given_vocabulary():
    """The vocabulary that --model_name= names, or None."""
    if not model_name:
        return None
    vocab = find_vocabulary(model_name)
    its_mode = 'manual' if isinstance(vocab, Characters) else 'tokenizer'
    if its_mode != mode:
        raise UserError(f'{model_name} is not a vocabulary for --mode={mode}: '
                        f'say --mode={its_mode}')
    if vocab.size > MOST_IDS:
        raise UserError(f'{model_name}: {vocab.size:,} ids do not fit into uint16; '
                        f'take a vocabulary of {MOST_IDS:,} at most')
    return vocab


def train_vocabulary(path):
    """A new vocabulary, learned from train.txt."""
    if mode == 'manual':
        return Characters.train(path, min_count)
    return SentencePiece.train(path, vocab_size)


def print_size(vocab):
    learned = mode == 'tokenizer' and not model_name
    short = learned and vocab.size < vocab_size
    more = f', all that the text can fill of {vocab_size:,}' if short else ''
    print0(f'vocabulary: {vocab.size:,} ids{more}')


# --- the stream ---

def write_tokens(vocab, texts, folder):
    """Write train.bin, val.bin and all that a reader of them needs: all of these files or none.

    Transformers is such a reader: it takes tokenizer.json and tokenizer_config.json.
    """
    meta = vocabulary_meta(vocab, texts)
    tokenizer = vocab.as_tokenizer()
    with ExitStack() as files:
        def create(name):
            return files.enter_context(atomic_write(folder / name, 'wb'))

        meta_file = create('meta.json')  # created first, so renamed last: if it exists, all do
        create('tokenizer_config.json').write(to_json(tokenizer_config(vocab, tokenizer)))
        create('tokenizer.json').write(tokenizer.to_str().encode())
        if vocab.file != 'tokenizer.json':
            create(vocab.file).write(vocab.content)
        for side, text in (('train', 'train.txt'), ('val', 'validation.txt')):
            stream = StreamWriter(create(f'{side}.bin'), create(f'{side}_offsets.bin'))
            about = write_side(vocab, texts / text, stream)
            meta |= {f'{side}_{name}': value for name, value in about.items()}
        meta_file.write(to_json(meta))


def write_side(vocab, path, stream):
    """Encode train.txt or validation.txt into the stream. Returns what meta.json tells of it."""
    n_chars, n_fitting = encode_file(vocab, path, stream, batch_size, chunk_size)
    n_pieces = max(1, stream.n_ids - 2 * stream.n_reviews - 1)
    fitting = f'{n_fitting / stream.n_reviews:.1%}'
    print0(f'{path}: {stream.n_ids:,} tokens, {n_chars / n_pieces:.3f} characters each; '
           f'{fitting} of the reviews fit whole into a row of {chunk_size}')
    return {
        'reviews': stream.n_reviews,
        'tokens': stream.n_ids,
        'chars': n_chars,
        'largest_id': stream.largest_id,
        'crc32': stream.crc32,
    }


# --- what is told of it ---

def vocabulary_meta(vocab, texts):
    """The beginning of meta.json: the vocabulary, and what is known of the texts."""
    import sentencepiece
    import tokenizers
    names = [*map(str, range(len(RATINGS))), 'unknown']
    meta = {
        'mode': mode,
        'model_name': model_name,
        'vocab_size': vocab.size,
        'vocabulary': vocab.file,
        'eos': vocab.eos,
        'starts': dict(zip(names, vocab.start_ids)),  # the start token of each rating
        'sources': [],
    }
    about_texts = texts / 'meta.json'
    if about_texts.exists():
        meta |= read_json(about_texts)
    if model_name in LICENCES:
        meta['vocabulary_licence'] = LICENCES[model_name]
    meta['versions'] = {
        'numpy': np.__version__,
        'sentencepiece': sentencepiece.__version__,
        'tokenizers': tokenizers.__version__,
    }
    return meta


def tokenizer_config(vocab, tokenizer):
    """How Transformers is to use tokenizer.json: control tokens that are typed stay text."""
    eos = tokenizer.id_to_token(vocab.eos)
    return {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'split_special_tokens': True,
        'padding_side': 'left',  # a batch of prompts ends where writing begins
        'add_bos_token': False,
        'add_eos_token': False,
        'clean_up_tokenization_spaces': False,
        'eos_token': eos,
        'pad_token': eos,
        'bos_token': tokenizer.id_to_token(vocab.start_ids[-1]),
    }


def to_json(value):
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def copy_texts(texts, folder):
    """The texts stand beside their tokens, where eval.py reads them."""
    if texts.resolve() == folder.resolve():
        return
    for name in ('train.txt', 'validation.txt', 'meta.json'):
        if (texts / name).exists():
            with open(texts / name, 'rb') as text, atomic_write(folder / name, 'wb') as copy:
                shutil.copyfileobj(text, copy)


if __name__ == '__main__':
    run_script(main)
