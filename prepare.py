"""Text → tokens: fetch reviews, clean and split them, make a vocabulary, write them as numbers.

    kr3 | kr3_raw | nsmc | hate_speech | demo | a file        read: rating, text
      → clean, split by a hash of the text                    <output_dir>/train.txt, validation.txt: rating<TAB>text
      → vocabulary: SentencePiece, a Hub tokenizer, letters   <output_dir>/<mode>/tokenizer.model | tokenizer.json | characters.json
      → </s> <rating> tokens… </s> <rating> tokens… </s>      <output_dir>/<mode>/train.bin, val.bin (uint16), meta.json

Everything passes in batches, so memory stays flat however long the text. Read from the bottom up: main() tells the story.
"""
import csv
import hashlib
import io
import json
import re
import signal
import unicodedata
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, __version__ as tokenizers_version, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm

from configurator import configure, refuse, whole
from data import demo, hub
from data.files import guess, rows

source = 'kr3'             # kr3, kr3_raw, nsmc, hate_speech, demo, or a .parquet .csv .tsv .jsonl .txt file; several with commas
output_dir = ''            # where to write ('': data/<source>)
data_dir = ''              # a folder that has train.txt and validation.txt already: only make tokens of them ('': start from source)
val_ratio = 0.1            # share of the reviews kept for validation
mode = 'tokenizer'         # tokenizer: sub-words; manual: one id per character
model_name = ''            # '': train SentencePiece on train.txt; or a Hub repository (skt/kogpt2-base-v2), tokenizer.json, model folder
vocab_size = 8000          # pieces of the SentencePiece vocabulary
min_count = 2              # manual: characters seen fewer times in train.txt become <unk>
chunk_size = 256           # only to report how many reviews fit whole into a training row of this many tokens
batch_size = 5000          # reviews at a time: more is faster and takes more memory
encoding = 'utf-8-sig'     # of .csv .tsv .jsonl .txt sources; Korean files of old are often cp949
n_reviews = 100000         # how many reviews the demo grammar writes
seed = 0                   # of the demo grammar
configure(globals())

LICENCES = {'kr3': 'CC BY-NC-SA 4.0', 'kr3_raw': 'CC BY-NC-SA 4.0', 'nsmc': 'CC0 1.0', 'hate_speech': 'CC BY-SA 4.0',
            'demo': 'MIT', 'skt/kogpt2-base-v2': 'CC BY-NC-SA 4.0'}
RAW = 'https://raw.githubusercontent.com'
GITHUB = {'nsmc': [f'{RAW}/e9t/nsmc/master/ratings_{part}.txt' for part in ('train', 'test')],
          'hate_speech': [f'{RAW}/kocohub/korean-hate-speech/master/labeled/{part}.tsv' for part in ('train', 'dev')]}
TEXT, STARS = ('Review', 'review', 'document', 'comments', 'text'), ('Rating', 'rating', 'label')  # columns, the first that is there
NAMES = (('negative', '부정'), ('positive', '긍정'), ('ambiguous', '보통'))  # of the ratings 0, 1, 2; their start tokens stand in CONTROLS
RATINGS = {'0': 0, '0.0': 0, 'False': 0, '1': 1, '1.0': 1, 'True': 1, '2': 2, '2.0': 2, '': -1, '-': -1, 'None': -1, 'nan': -1, 'NaN': -1}


# --- reading ---------------------------------------------------------------------------------------------------------
CONTROL = re.compile('[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]')


def clean(text):
    """A review as one line: no control characters or halves of surrogate pairs; composed letters (NFC; NFKC would turn ㅋㅋ into ᄏᄏ
    for good); no ▁, which SentencePiece keeps for the space itself; each run of spaces and line breaks one space. Twice is as once."""
    return ' '.join(unicodedata.normalize('NFC', CONTROL.sub('', text)).replace('▁', '_').split())


def read(name):
    """(rating, text, bits) of every review of a source: rating 0, 1, 2 or -1 (unknown), text clean, bits -log2 P where it is known."""
    if name == 'demo':
        yield from demo.reviews(n_reviews, seed)
        return
    files = hub.dataset(name) if name in ('kr3', 'kr3_raw') else [Path(name)]
    if name in GITHUB:
        files = [hub.download(url, hub.DOWNLOADS / f'{name}_{Path(url).stem}.tsv') for url in GITHUB[name]]
    for file in files:
        n = 0
        try:
            for n, row in enumerate(rows(file, TEXT + STARS, encoding, batch_size), 1):
                names = row if isinstance(row, dict) else {}
                text, stars = (next((c for c in wanted if c in names), None) for wanted in (TEXT, STARS))
                if text is None:
                    raise ValueError(f'its columns are {", ".join(map(str, names)) or "none"}; one of {", ".join(TEXT)} is needed')
                rating = RATINGS.get(str(row.get(stars)).strip())
                if rating is None:
                    raise ValueError(f'the rating is {row[stars]!r}; it must be 0 (negative), 1 (positive), 2 (ambiguous) or empty')
                if isinstance(row[text], str) and (text := clean(row[text])):
                    yield rating, text, None
        except UnicodeError:
            raise ValueError(f'{file} is not {encoding.removesuffix("-sig")}; {guess(file)}') from None
        except (ValueError, LookupError, OSError, NotImplementedError, RecursionError, csv.Error) as e:
            raise ValueError(f'{file} cannot be read at review {n}: {e}') from None


# --- the split -------------------------------------------------------------------------------------------------------
def in_validation(text):
    """A review's side hangs on its text alone: duplicates never part, and neither order nor other sources move it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big') < val_ratio * 2 ** 64


def split(folder, names):
    """Write <source>_train.txt, <source>_val.txt, train.txt, validation.txt, and meta.json with where they come from: all or none."""
    count, chars, bits, meta = Counter(), 0, 0.0, {'sources': []}
    with ExitStack() as files:
        about, *both = [files.enter_context(whole(folder / f)) for f in ('meta.json', 'train.txt', 'validation.txt')]
        for name, src in names.items():
            own = [files.enter_context(whole(folder / f'{name}_{f}.txt')) for f in ('train', 'val')]
            licence = LICENCES.get(src, "the file's own")
            for rating, text, known in tqdm(read(src), desc=f'split {name}', unit=' reviews', mininterval=0.5, disable=None):
                val = in_validation(text)
                line = f'{rating if rating >= 0 else "-"}\t{text}\n'
                own[val].write(line), both[val].write(line)
                count[name, val] += 1
                if val:
                    chars, bits = chars + len(text), bits + (known if known is not None else float('nan'))
            n, m = count[name, False], count[name, True]
            meta['sources'].append({'name': name, 'licence': licence, 'train_reviews': n, 'val_reviews': m})
            print(f'{name}: {n:,} reviews to train on, {m:,} to validate; licence: {licence}')
        if not all(sum(count[name, val] for name in names) for val in (False, True)):
            raise ValueError(f'{sum(count.values())} reviews are too few to have some on each side with val_ratio={val_ratio}')
        if bits == bits:  # every review's probability is known: no model can do better on these than the grammar that wrote them
            meta['floor_bits_per_char'] = bits / chars
        json.dump(meta, about, indent=1, ensure_ascii=False)


def read_split(path):
    """(rating, text) of every line of train.txt or validation.txt; rating -1 where none is known. Raises ValueError."""
    with open(path, encoding='utf-8', newline='\n') as f:
        for n, line in enumerate(f, 1):
            rating, tab, text = line.rstrip('\n').partition('\t')
            if not tab or rating not in RATINGS:
                raise ValueError(f'{path}, line {n}: a line is rating<TAB>review, rating 0, 1, 2 or -; --source= reads other forms')
            yield RATINGS[rating], text


# --- the three vocabularies ------------------------------------------------------------------------------------------
CONTROLS = ['</s>', '<s>', '<neg>', '<pos>', '<amb>']  # what a review is framed by; typed in a review they are plain characters


class Vocabulary:
    """What all three have: size, eos, starts (ids of the ratings 0, 1, 2 and, at -1, of none), banned (ids never written inside a review),
    file and content (its name and bytes), encode(texts) → a list of ids a text, decode(ids) → the text without control ids, and
    as_tokenizer() → the same for the `tokenizers` library, with which Transformers reads it."""

    def frame(self, ids, unknown):
        if len({*ids, *unknown}) < len(ids) + len(unknown):
            raise ValueError(f'it lacks one of {" ".join(CONTROLS)}')
        self.eos, start, *ratings = ids
        self.starts, self.banned = [*ratings, start], [start, *ratings, *unknown]

    def as_tokenizer(self):
        return self.tokenizer


class SentencePiece(Vocabulary):
    """Sub-words learned from the reviews themselves (BPE; Sennrich et al. 2016, arXiv:1508.07909). What no piece covers is
    spelled in bytes, so every text has an encoding and decodes to itself."""
    file = 'tokenizer.model'

    def __init__(self, content):
        self.content, self.sp = content, sentencepiece.SentencePieceProcessor()
        self.sp.load_from_serialized_proto(content)
        self.size = len(self.sp)
        self.frame([self.sp.piece_to_id(c) for c in CONTROLS], [self.sp.unk_id()])

    @classmethod
    def train(cls, path):
        """Learn vocab_size pieces, or as many as the text can fill. Raises ValueError."""
        every = -(-sum(1 for _ in read_split(path)) // 200_000) or 1  # 200,000 reviews say all there is to say about 8,000 pieces
        parts = (text[k:k + 16_000] for _, text in islice(read_split(path), 0, None, every) for k in range(0, len(text), 16_000))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=parts, max_sentence_length=64_000,  # bytes; it would skip longer ones, hence the parts
                model_writer=model, model_type='bpe', vocab_size=vocab_size, hard_vocab_limit=False, byte_fallback=True, split_digits=True,
                normalization_rule_name='identity', remove_extra_whitespaces=False,  # what was written, as it was written
                control_symbols=CONTROLS[2:], minloglevel=2)
        except RuntimeError as e:
            least = re.search(r' vs (\d+)', str(e))
            why = f'its letters alone take vocab_size={least[1]}' if least else f'no pieces can be learned ({e})'
            raise ValueError(f'{path}: {why}') from None
        return cls(model.getvalue())

    def encode(self, texts):
        return self.sp.encode(texts)

    def decode(self, ids):
        return self.sp.decode([int(i) for i in ids])

    def as_tokenizer(self):
        """SentencePiece merges the neighbours that make the piece of the best score first; pieces come in the order of their scores."""
        pieces = [self.sp.id_to_piece(i) for i in range(self.size)]
        ids = {piece: i for i, piece in enumerate(pieces)}
        merges = [(p[:k], p[k:]) for p in pieces[ids['<0xFF>'] + 1:] for k in range(1, len(p)) if p[:k] in ids and p[k:] in ids]
        t = Tokenizer(models.BPE(ids, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
        t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
        t.add_special_tokens(['<unk>', *CONTROLS])
        return t


class HubTokenizer(Vocabulary):
    """Somebody else's vocabulary, from its tokenizer.json. Its unused ids are lent to the ratings. KoGPT2's normalises by NFKC
    (ㅋㅋ comes back as ᄏᄏ, ½ as 1⁄2) and knows no bytes, so that there decoding does not always give the text back."""
    file = 'tokenizer.json'

    def __init__(self, content):
        try:
            self.tokenizer = t = Tokenizer.from_str(content.decode())
        except Exception as e:  # the library raises nothing narrower
            raise ValueError(f'not a tokenizer.json ({e})') from None
        t.no_truncation(), t.no_padding()
        t.post_processor = None         # it would put tokens of its own around a text
        t.encode_special_tokens = True  # "</s>" typed in a review is text
        ids, frame = t.get_vocab(), []
        unused = [token for token in sorted(ids, key=ids.get) if re.fullmatch(r'[<\[]unused_?\d+[>\]]', token)]
        for names in [('</s>', '<|endoftext|>', '<|im_end|>', '<eos>', '[SEP]'), *((c,) for c in CONTROLS[1:])]:
            free = (n for n in (*names, *unused) if n in ids and ids[n] not in frame)
            name = next((n for n in free if ids[n] not in t.encode(n, add_special_tokens=False).ids), None)
            if name is None:  # none is there, or only such as typed text becomes: a new one
                t.add_special_tokens([name := names[0] if names[0] not in ids else f'<{names[0]}>'])
            frame.append(t.token_to_id(name))
        self.content, self.size = t.to_str().encode(), max(t.get_vocab().values()) + 1
        self.frame(frame, [i for n, i in ids.items() if n in ('<unk>', '[UNK]', '<pad>', '[PAD]', '<mask>', '[MASK]')])

    def encode(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids):
        return self.tokenizer.decode([int(i) for i in ids if i not in (self.eos, *self.starts)], skip_special_tokens=False)


class Characters(Vocabulary):
    """One id per character, by hand: the oldest vocabulary. What was too rare to learn is <unk> and decodes to �."""
    file = 'characters.json'

    def __init__(self, content):
        self.content, self.characters = content, json.loads(content)
        self.ids = {c: i for i, c in enumerate(self.characters)}
        self.size, self.unk = len(self.characters), self.ids['<unk>']
        self.frame([self.ids[c] for c in CONTROLS], [self.unk])

    @classmethod
    def train(cls, path):
        count = Counter()
        for _, text in read_split(path):
            count.update(text)
        kept = [c for c, n in sorted(count.items(), key=lambda item: (-item[1], item[0])) if n >= min_count]
        return cls(json.dumps([*CONTROLS, '<unk>', *kept], ensure_ascii=False).encode())

    def encode(self, texts):
        return [[self.ids.get(c, self.unk) for c in text] for text in texts]

    def decode(self, ids):
        return ''.join('�' if i == self.unk else '' if i < self.unk else self.characters[i] for i in ids)

    def as_tokenizer(self):
        t = Tokenizer(models.WordLevel(self.ids, unk_token='<unk>'))
        t.pre_tokenizer = pre_tokenizers.Split(Regex(r'(?m).'), 'isolated')
        t.decoder = decoders.Fuse()
        t.add_special_tokens([*CONTROLS, '<unk>'])
        return t


def load_vocabulary(folder):
    """The vocabulary of a <mode> folder or a model folder. Raises ValueError in one sentence."""
    try:
        kind = json.loads((Path(folder) / 'meta.json').read_text('utf-8'))['vocabulary']
        return {v.file: v for v in (SentencePiece, HubTokenizer, Characters)}[kind]((Path(folder) / kind).read_bytes())
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as e:
        raise ValueError(f'{folder} has no vocabulary that can be read ({type(e).__name__}: {e})') from None


def given_vocabulary():
    """The vocabulary that model_name names. Raises OSError or ValueError in one sentence."""
    path = Path(model_name)
    if (path / 'meta.json').exists():
        return load_vocabulary(path)
    path = path / 'tokenizer.json' if path.is_dir() else path
    if not path.exists():
        if Path(model_name).is_dir() or not hub.is_repository(model_name):
            raise ValueError(f"model_name='{model_name}' is no tokenizer.json, folder with a vocabulary, or Hub repository (owner/name)")
        path = hub.download_model(model_name, 'tokenizer.json')
        print(f'{model_name}: licence: {LICENCES.get(model_name, "see its page on the Hub")}')
    return HubTokenizer(path.read_bytes())


# --- tokens ----------------------------------------------------------------------------------------------------------
def encode_side(vocab, path, f):
    """Write the stream `</s> <rating> tokens… </s> <rating> tokens… </s>` as uint16 into f. Returns (reviews, tokens, characters)."""
    reviews, tokens, chars, fitting, pairs = 0, 1, 0, 0, read_split(path)
    with tqdm(desc=f'encode {path.name}', unit=' reviews', mininterval=0.5, disable=None) as bar:
        while batch := list(islice(pairs, batch_size)):
            ids = vocab.encode([text for _, text in batch])
            stream = [i for (rating, _), review in zip(batch, ids) for i in (vocab.eos, vocab.starts[rating], *review)]
            f.write(np.array(stream, dtype=np.uint16).tobytes())
            reviews, tokens, chars = reviews + len(batch), tokens + len(stream), chars + sum(len(text) for _, text in batch)
            fitting += sum(len(review) + 2 <= chunk_size for review in ids)
            bar.update(len(batch))
    if not reviews:
        raise ValueError(f'{path} is empty')
    f.write(np.array([vocab.eos], dtype=np.uint16).tobytes())  # closes the last review
    print(f'{path}: {tokens:,} tokens, {chars / max(1, tokens - 1 - 2 * reviews):.3f} characters each; '
          f'{fitting / reviews:.1%} of the reviews fit whole into a row of {chunk_size}')
    return reviews, tokens, chars


def write_tokens(vocab, texts, folder):
    """Write train.bin, val.bin and all that their reader needs, Transformers being one: all or none of it."""
    about = json.loads((texts / 'meta.json').read_text('utf-8')) if (texts / 'meta.json').exists() else {}
    words = vocab.as_tokenizer()
    eos, start = words.id_to_token(vocab.eos), words.id_to_token(vocab.starts[-1])
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'split_special_tokens': True,  # typed control tokens stay text there too
              'add_bos_token': False, 'add_eos_token': False, 'clean_up_tokenization_spaces': False, 'eos_token': eos, 'pad_token': eos, 'bos_token': start}
    meta = {'mode': mode, 'model_name': model_name, 'vocab_size': vocab.size, 'vocabulary': vocab.file, 'eos': vocab.eos,
            'starts': dict(zip((*map(str, range(len(NAMES))), 'unknown'), vocab.starts)), 'sources': [], **about,
            **({'vocabulary_licence': LICENCES[model_name]} if model_name in LICENCES else {}),
            'versions': {'numpy': np.__version__, 'sentencepiece': sentencepiece.__version__, 'tokenizers': tokenizers_version}}
    with ExitStack() as files:
        names = dict.fromkeys(('meta.json', 'tokenizer_config.json', 'tokenizer.json', vocab.file, 'train.bin', 'val.bin'))
        out = {name: files.enter_context(whole(folder / name, 'wb')) for name in names}
        for side, text in (('train', 'train.txt'), ('val', 'validation.txt')):
            meta.update(zip((f'{side}_reviews', f'{side}_tokens', f'{side}_chars'), encode_side(vocab, texts / text, out[f'{side}.bin'])))
        out['tokenizer.json'].write(words.to_str().encode())
        if vocab.file != 'tokenizer.json':
            out[vocab.file].write(vocab.content)
        out['tokenizer_config.json'].write(json.dumps(config, indent=1).encode())
        out['meta.json'].write(json.dumps(meta, indent=1, ensure_ascii=False).encode())


def main():
    known, kinds, names = ['demo', 'kr3', 'kr3_raw', *GITHUB], ('.parquet', '.csv', '.tsv', '.jsonl', '.txt'), {}
    for right, sentence in [(mode in ('tokenizer', 'manual'), f"mode='{mode}': it is 'tokenizer' or 'manual'"),
                            (0 < val_ratio < 1, f'val_ratio={val_ratio}: it takes more than 0 and less than 1'),
                            (300 <= vocab_size <= 65536, f'vocab_size={vocab_size}: it takes 300 to 65536'),  # 262 are bytes and controls
                            (min(batch_size, n_reviews) > 0, 'batch_size and n_reviews take 1 or more')]:
        if not right:
            refuse(sentence)
    for src in source.split(','):
        if src not in known and not (Path(src).is_file() and Path(src).suffix.lower() in kinds):
            refuse(f"source '{src}' is neither one of {', '.join(known)} nor a {' '.join(kinds)} file that is there")
        if (name := src if src in known else Path(src).stem) in names:
            refuse(f'{names[name]} and {src} would both be written to {name}_train.txt; rename one')
        names[name] = src
    folder = Path(output_dir or data_dir or f'data/{"+".join(names)}')
    texts, both = Path(data_dir or folder), ('train.txt', 'validation.txt')
    if data_dir and not all((texts / file).exists() for file in both):
        refuse(f'{texts} has not both of {" and ".join(both)}; leave --data_dir out to make them from --source=')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that no half-written file stays
    try:
        vocab = given_vocabulary() if model_name else None  # first, for what is wrong with it is known in a second
        if vocab and isinstance(vocab, Characters) != (mode == 'manual'):
            refuse(f"{model_name} is not a vocabulary for --mode={mode}: say --mode={'tokenizer' if mode == 'manual' else 'manual'}")
        if vocab and vocab.size > 65536:
            refuse(f'{model_name}: {vocab.size:,} ids do not fit into uint16; take a vocabulary of 65,536 at most')
        if not data_dir:
            split(folder, names)
        vocab = vocab or (Characters if mode == 'manual' else SentencePiece).train(texts / 'train.txt')
        full = mode == 'manual' or model_name or vocab.size == vocab_size
        print(f'vocabulary: {vocab.size:,} ids' + ('' if full else f', all that the text can fill of {vocab_size:,}'))
        write_tokens(vocab, texts, folder / mode)
        for file in [f for f in (*both, 'meta.json') if folder.resolve() != texts.resolve() and (texts / f).exists()]:  # eval.py reads them beside the tokens
            with open(texts / file, 'rb') as text, whole(folder / file, 'wb') as f:
                f.writelines(text)
    except (OSError, ValueError) as e:
        refuse(' '.join(str(e).split()))
    except KeyboardInterrupt:
        refuse('interrupted; what was there before is there still')
    print(f'ready: python train.py --data_dir={folder} --out_dir=out/{folder.resolve().name}' + ' --mode=manual' * (mode == 'manual'))


if __name__ == '__main__':
    main()
