"""Text → ids: fetch texts, clean and split them, make a vocabulary, write the texts as numbers.

    kr3 | kr3_raw | nsmc | hate_speech | shakespeare | demo | a file | a folder
      → clean, split by a hash of the text     <output_dir>/train.txt, validation.txt
      → a vocabulary                           <output_dir>/<mode>/tokenizer.model
      → the stream of ids                      <output_dir>/<mode>/train.bin, val.bin, meta.json,
                                               train_offsets.bin, val_offsets.bin

Two reviews, the first positive, all the way (with the vocabulary of the demo):

    lines     1<TAB>맛있었어요!              0<TAB>너무 짜요
    pieces    ▁맛있었어요 !                 ▁너무 ▁짜 요
    stream    </s> <pos> ▁맛있었어요 ! </s> <neg> ▁너무 ▁짜 요 </s>
    ids       2    4     560      3577 2    3     276  2009 3517 2      uint16

Texts pass one by one or in batches, so memory stays flat however many there are.
"""
import shlex
import signal
import sys
from pathlib import Path

import numpy as np

from configurator import configure
from parts.checkpoint import lock_folder, to_json
from parts.corpus import (
    KNOWN_SOURCES,
    OWN_LICENCE,
    RATINGS,
    SIDES,
    Labels,
    StreamWriter,
    check_clean,
    clean_copy,
    encode_file,
    find_source,
    finish_renames,
    new_files,
    read_texts_meta,
    refuse_to_overwrite,
    refuse_twice,
    source_name,
    split_sources,
    text_names,
    texts_meta,
)
from parts.errors import UserError, print0, run_script, split_at_commas, user_path
from parts.readers import UNITS, Reader
from parts.vocabulary import MOST_IDS, Characters, SentencePiece, find_vocabulary

# what goes in
source = 'kr3'        # kr3, kr3_raw, nsmc, hate_speech, shakespeare, demo, a file, a folder; a,b
unit = 'line'         # what one text of a .txt is: line, paragraph or file
text_column = ''      # of a table: the column of the texts ('': review, document, comment, text)
rating_column = ''    # ('': rating, label, sentiment, score, star; none: read no ratings)
ratings = ''          # what the labels mean, as 1:0,2:0,3:2,4:1,5:1 for stars; words too
encoding = 'utf-8-sig'  # of sources but .parquet; old Korean files are often cp949
n_reviews = 100000    # how many reviews the demo grammar writes
seed = 0              # of the demo grammar
# the vocabulary
mode = 'tokenizer'    # tokenizer: sub-words; manual: one id per character; tokenizer,manual: both
model_name = ''       # '': learn sub-words; or tokenizer.json, model folder, skt/kogpt2-base-v2
revision = ''         # commit, tag or branch of that model, else of kr3 ('': the pinned one)
vocab_size = 8000     # pieces of the SentencePiece vocabulary
min_count = 2         # manual: characters seen fewer times in train.txt become <unk>
# what comes out
output_dir = ''       # where to write ('': data/<source>)
data_dir = ''         # with train.txt and validation.txt: only make ids of them ('': from source)
val_ratio = 0.1       # share of the texts, or of each file with --unit=file, kept for validation
chunk_size = 256      # only to report how many texts fit whole into a row of so many tokens
batch_size = 5000     # texts to encode at a time, fewer long ones; more take more memory
settings = configure(globals())

TOKEN_FILES = [
    'train.bin', 'train_offsets.bin', 'val.bin', 'val_offsets.bin', 'meta.json',
    'tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'characters.json',
]
# split as everybody splits it; few sub-words, for it is small, and every character
SHAKESPEARE = {'unit': 'file', 'mode': 'tokenizer,manual', 'min_count': 1, 'vocab_size': 1000}


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no .part file stays
    if source == 'shakespeare':  # what nobody set is for it as SHAKESPEARE says
        globals().update({name: value for name, value in SHAKESPEARE.items()
                          if name not in settings.given and not (name == 'mode' and model_name)})
    check_settings()
    try:
        given = given_vocabulary()  # first, because what is wrong with it is known in a second
        folder, reports = take_texts() if data_dir else make_texts()
        sizes = []
        for one in mode.split(','):
            vocab = given or new_vocabulary(one, folder / 'train.txt')
            more = ''
            if one == 'tokenizer' and not given and vocab.size < vocab_size:
                more = f', all that the text can fill of {vocab_size:,}'
            sizes.append(f'vocabulary, {one}: {vocab.size:,} ids{more}')
            sizes += write_tokens(vocab, folder)
    except OSError as error:  # no space left, no permission, a file where a folder should be
        raise UserError(error) from None
    except KeyboardInterrupt:
        raise UserError('interrupted; each file is still whole') from None
    for report in reports:
        sizes += report.lines()
    for line in sizes:
        print0(line)
    for one in mode.split(','):
        print0(f'ready: python train.py {training_flags(folder, one)}')


def training_flags(folder, its_mode):
    """What train.py is to be told: the config file that is made for this folder, or names."""
    name = folder.resolve().name
    config = Path('config', f'{name}.py' if its_mode == 'tokenizer' else f'{name}_{its_mode}.py')
    other = name in KNOWN_SOURCES and not data_dir and source != name  # a person's demo.txt, say
    to_tune = model_name and (user_path(model_name) / 'model.safetensors').exists()
    if folder == Path('data', name) and config.exists() and not other and not to_tune:
        return config
    out = name if its_mode == mode else f'{name}_{its_mode}'  # each its own where both are made
    if to_tune and Path('out', out).resolve() == user_path(model_name).resolve():
        out += '_tuned'
    words = [f'--data_dir={folder}', f'--out_dir=out/{out}']
    if its_mode == 'manual':
        words.append('--mode=manual')
    if to_tune:
        words.append(f'--init_from={model_name}')
    return shlex.join([*words, '--minutes=10'])


# --- before any work ---

def check_settings():
    """Raise UserError where a setting has no meaning."""
    if mode not in ('tokenizer', 'manual', 'tokenizer,manual', 'manual,tokenizer'):
        raise UserError(f"mode='{mode}': it is 'tokenizer', 'manual' or 'tokenizer,manual'")
    if unit not in UNITS:
        raise UserError(f"unit='{unit}': it is one of {', '.join(UNITS)}")
    if sum(word.split('=')[0] == '--source' for word in sys.argv[1:]) > 1:
        raise UserError('source is given twice; it takes several with commas: --source=a.txt,b.txt')
    if not 0 < val_ratio < 1:
        raise UserError(f'val_ratio={val_ratio}: it takes more than 0 and less than 1')
    if not 300 <= vocab_size <= MOST_IDS:  # 262 of them are bytes and control tokens
        raise UserError(f'vocab_size={vocab_size}: it takes 300 to {MOST_IDS}')
    if min(batch_size, n_reviews) < 1:
        raise UserError('batch_size and n_reviews take 1 or more')
    for name in ('source', 'text_column', 'rating_column', 'ratings', 'encoding', 'val_ratio',
                 'n_reviews', 'seed', *([] if model_name else ['revision'])):
        if data_dir and name in settings.given:
            raise UserError(f'{name} is for texts that are still to be split; --data_dir= only '
                            'makes ids of those that are there, so leave one of the two out')


def name_sources():
    """{name: source} of all that --source= lists, as {'reviews': Path('data/reviews.csv')}."""
    all_found = [find_source(one) for one in split_at_commas(source)]
    refuse_twice(path for path in all_found if path not in KNOWN_SOURCES)
    sources = {}
    for found in all_found:
        name = source_name(found)
        if name in sources:
            raise UserError(f'{sources[name]} and {found} would both be written to '
                            f'{name}_train.txt; rename one')
        sources[name] = found
    return sources


# --- the texts ---

def make_texts():
    """Write train.txt and validation.txt of the sources. Returns (their folder, Reports)."""
    sources = name_sources()
    files = [path for path in sources.values() if path not in KNOWN_SOURCES]
    for name in ('encoding', 'text_column', 'rating_column'):
        if not files and getattr(settings, name) != 'none' and name in settings.given:
            raise UserError(f'{name} is for files of your own; that of {source} is known')
    labels = Labels(ratings)
    folder = user_path(output_dir or f'data/{"+".join(sources)}')
    claim(folder, text_names(sources), files)
    reports = split_sources(sources, folder, val_ratio, labels, make_reader,
                            revision='' if model_name else revision,
                            n_reviews=n_reviews, seed=seed)
    return folder, reports


def take_texts():
    """Take the train.txt and validation.txt of data_dir, as they are or as a clean copy. Returns
    (their folder, Reports).
    """
    texts = user_path(data_dir)
    folder = user_path(output_dir or data_dir)
    finish_renames(texts)
    for name in SIDES.values():
        if not (texts / name).exists():
            raise UserError(f'{texts} has not both of train.txt and validation.txt; '
                            f'leave --data_dir out to make them from --source=')
    its_unit = read_texts_meta(texts).get('unit', unit)
    if 'unit' in settings.given and unit != its_unit:
        raise UserError(f'unit={unit}: the texts in {texts} were made with --unit={its_unit}, as '
                        'its meta.json says; leave the flag out')
    if texts.resolve() == folder.resolve():
        claim(folder, [], [])
        check_clean(texts, its_unit)
        return folder, []
    claim(folder, text_names([]), [texts / name for name in SIDES.values()])
    return folder, clean_copy(texts, folder, its_unit)


def claim(folder, names, sources):
    """Keep another prepare.py out of a folder while this one writes into it. Raises UserError where
    another is there, or files that it must not write over.
    """
    lock_folder(folder)
    finish_renames(folder)
    refuse_to_overwrite(folder, names, sources)
    for one in mode.split(','):
        lock_folder(folder / one)
        finish_renames(folder / one)
        refuse_to_overwrite(folder / one, TOKEN_FILES, [])


def make_reader(source):
    """How the files of a source are read: of one that is known the columns are known, too."""
    if source in KNOWN_SOURCES:
        return Reader(unit=unit, rating_column='none' if rating_column == 'none' else '')
    return Reader(encoding, unit, text_column, rating_column, labels_meant=bool(ratings),
                  lines_meant='unit' in settings.given)


# --- the vocabulary ---

def given_vocabulary():
    """The vocabulary that --model_name= names, or None."""
    if not model_name:
        return None
    vocab = find_vocabulary(model_name, revision)
    if vocab.mode != mode:
        raise UserError(f'{model_name} is not a vocabulary for --mode={mode}: '
                        f'say --mode={vocab.mode}')
    if vocab.size > MOST_IDS:
        raise UserError(f'{model_name}: {vocab.size:,} ids do not fit into uint16; '
                        f'take a vocabulary of {MOST_IDS:,} at most')
    return vocab


def new_vocabulary(its_mode, train_txt):
    """One that is made of the training text."""
    if its_mode == 'manual':
        return Characters.train(train_txt, min_count)
    return SentencePiece.train(train_txt, vocab_size)


# --- the stream ---

def write_tokens(vocab, texts):
    """Write train.bin, val.bin and all that a reader of them needs: all of these files or none.
    Returns what is to be said of them.

    Transformers is such a reader: it takes tokenizer.json and tokenizer_config.json.
    """
    tokenizer = vocab.as_tokenizer()
    content = {
        'tokenizer_config.json': to_json(tokenizer_config(vocab, tokenizer)),
        'tokenizer.json': tokenizer.to_str().encode(),
        vocab.file: vocab.content,
    }
    meta = vocabulary_meta(vocab, texts)
    said = []
    with new_files(texts / vocab.mode) as create:
        for name, there in content.items():
            create(name).write(there)
        for side, text in SIDES.items():
            stream = StreamWriter(create(f'{side}.bin'), create(f'{side}_offsets.bin'))
            side_meta, line = write_side(vocab, texts / text, stream, meta['unit'])
            said.append(line)
            meta |= {f'{side}_{name}': value for name, value in side_meta.items()}
        if len(meta['sources']) < 2:  # a person may have split the texts, or left some out since
            theirs = {'name': source_name(texts), 'licence': OWN_LICENCE}
            counts = {name: meta[name] for name in ('train_reviews', 'val_reviews')}
            meta['sources'] = [{**(meta['sources'] or [theirs])[0], **counts}]
        create('meta.json').write(to_json(meta))
    return said


def write_side(vocab, path, stream, its_unit):
    """Encode train.txt or validation.txt into the stream. Returns (its part of meta.json, what is
    to be said of it).
    """
    n_chars, n_unseen, n_fitting, n_unknown = encode_file(
        vocab, path, stream, batch_size, chunk_size)
    n_pieces = max(1, stream.n_ids - 2 * stream.n_texts - 1)
    line = f'{path}: {stream.n_ids:,} tokens, {n_chars / n_pieces:.3f} characters each'
    if its_unit != 'file':
        fitting = f'{n_fitting / stream.n_texts:.1%}'
        line += f'; {fitting} of the texts fit whole into a row of {chunk_size}'
    if n_unknown:
        line += f'; {n_unknown:,} of the tokens are <unk>: characters that it lacks'
    side_meta = {
        'reviews': stream.n_texts,
        'tokens': stream.n_ids,
        'chars': n_chars,
        'unseen': n_unseen,  # of them, hidden behind <unk>
        'largest_id': stream.largest_id,
        'crc32': stream.crc32,
    }
    return side_meta, line


# --- what is told of it ---

def vocabulary_meta(vocab, texts):
    """The beginning of meta.json: the vocabulary, and what is known of the texts."""
    import sentencepiece
    import tokenizers
    names = [*map(str, range(len(RATINGS))), 'unknown']
    flag = f'--min_count={min_count}' if vocab.mode == 'manual' else f'--vocab_size={vocab_size}'
    meta = {
        'mode': vocab.mode,
        'model_name': model_name,
        'vocab_size': vocab.size,
        'vocabulary': vocab.file,
        'vocabulary_flag': f'--model_name={model_name}' if model_name else flag,  # makes it again
        'eos': vocab.eos,
        'starts': dict(zip(names, vocab.start_ids)),  # the start token of each rating
        'sources': [],
        'unit': unit,
    }
    meta |= read_texts_meta(texts)
    meta.pop('files', None)  # those that lie beside the texts
    meta |= texts_meta(texts)  # the bins know the texts that they were made of
    if vocab.licence:
        meta['vocabulary_licence'] = vocab.licence
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


if __name__ == '__main__':
    run_script(main)
