"""Text → tokens: fetch reviews, clean and split them, make a vocabulary, write them as numbers.

    kr3 | kr3_raw | nsmc | hate_speech | demo | a file        read: batches of (rating, text)
      → clean, split by a hash of the text                    <output_dir>/train.txt, validation.txt: rating<TAB>text
      → vocabulary: SentencePiece, a Hub tokenizer, letters   <output_dir>/<mode>/tokenizer.model | tokenizer.json | characters.json
      → </s> <rating> tokens… </s> <rating> tokens… </s>      <output_dir>/<mode>/train.bin, val.bin (uint16), meta.json

Everything passes in batches, so memory stays flat however long the text. Read from the bottom up: main() tells the story.
"""
import csv
import hashlib
import io
import json
import os
import re
import time
import unicodedata
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import requests
import sentencepiece
import tokenizers
from tqdm import tqdm

from configurator import configure, refuse, whole
from data import demo

source = 'kr3'             # kr3, kr3_raw, nsmc, hate_speech, demo, or a .parquet .csv .tsv .jsonl .txt file; several with commas
output_dir = ''            # where to write ('': data/<source>)
data_dir = ''              # a folder that has train.txt and validation.txt already: only make tokens of them ('': start from source)
val_ratio = 0.1            # share of the reviews kept for validation
mode = 'tokenizer'         # tokenizer: sub-words; manual: one id per character
model_name = ''            # '': train SentencePiece on train.txt; or a Hub repository (skt/kogpt2-base-v2), a tokenizer.json, a model folder
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
RAW = 'https://raw.githubusercontent.com/'
GITHUB = {'nsmc': ('e9t/nsmc/master', ['ratings_train.txt', 'ratings_test.txt']),
          'hate_speech': ('kocohub/korean-hate-speech/master/labeled', ['train.tsv', 'dev.tsv'])}
DOWNLOADS = Path('data/download')
HUB = os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')


# --- download --------------------------------------------------------------------------------------------------------

def get(url, tries=5, **more):
    """requests.get with the Hub's token (for the Hub alone) and patience: five tries, twice as long a wait before each."""
    token = os.environ.get('HF_TOKEN')
    headers = {**({'Authorization': f'Bearer {token}'} if token and url.startswith(HUB) else {}), **more.pop('headers', {})}
    for attempt in range(tries):
        try:
            answer = requests.get(url, headers=headers, timeout=30, **more)
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
            reason = f'the server says {answer.status_code}'
        except (requests.ConnectionError, requests.Timeout) as e:
            reason = type(e).__name__
        if attempt + 1 < tries:
            time.sleep(0.5 * 2 ** attempt)
    raise OSError(f'{url}: {reason}, {tries} times')


def download(url, path):
    """Fetch url into path, once: streamed with a bar, resumed where a connection broke off, and renamed to its name only when the
    length and, where the server states a sha256, the checksum are right. Raises OSError with a sentence."""
    path = Path(path)
    if path.exists():
        return path
    done, size, digest, sha = 0, None, hashlib.sha256(), None
    with whole(path, 'wb') as f, tqdm(desc=path.name, unit='B', unit_scale=True) as bar:
        for attempt in range(6):
            with get(url, stream=True, headers={'Accept-Encoding': 'identity', **({'Range': f'bytes={done}-'} if done else {})}) as answer:
                if answer.status_code not in (200, 206):
                    raise OSError(f'{url}: the server says {answer.status_code}')
                if answer.status_code == 200 and done:  # the server cannot resume: from the start again
                    f.seek(0), f.truncate(), bar.reset()
                    done, digest = 0, hashlib.sha256()
                for hop in (*answer.history, answer):   # the Hub states size and sha256 on the redirect, its store does not
                    tag = hop.headers.get('X-Linked-ETag', '').strip('"')
                    sha = tag if re.fullmatch('[0-9a-f]{64}', tag) else sha
                    size = int(hop.headers.get('X-Linked-Size', 0)) or size
                length = answer.headers.get('Content-Length')
                size = size or (done + int(length) if length else None)
                bar.total = size
                try:
                    for block in answer.iter_content(1 << 16):
                        f.write(block), digest.update(block), bar.update(len(block))
                        done += len(block)
                        if size and done > size:
                            break
                except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                    time.sleep(0.5 * 2 ** attempt)
                    continue
            if size is None or done >= size:
                break
        if size is not None and done != size:
            raise OSError(f'{url}: {done:,} bytes came, {size:,} were promised')
        if sha and digest.hexdigest() != sha:
            raise OSError(f'{url}: the checksum is not the one the server states; nothing was kept')
    return path


def hub_dataset(subset):
    """The parquet files of one subset of leey4n/KR3, as the dataset viewer lists them or, where it fails, the repository itself."""
    listing = DOWNLOADS / f'{subset}.json'  # remembered, so that a second run asks nothing
    if not listing.exists():
        urls = []
        try:
            subsets = get(f'{HUB}/api/datasets/leey4n/KR3/parquet').json()
            only = [name for name in subsets if name != 'kr3_raw'] if subset == 'kr3' else []
            chosen = subset if subset in subsets else only[0] if len(subsets) == len(only) == 1 else None
            urls = [url for split in subsets.get(chosen, {}).values() for url in split]
        except (OSError, ValueError, AttributeError):
            pass  # the viewer is a service of its own, and may be away while the Hub is there
        if not urls:
            answer = get(f'{HUB}/api/datasets/leey4n/KR3')
            if answer.status_code != 200:
                raise OSError(f'{HUB}: the server says {answer.status_code} to the question for leey4n/KR3')
            names = [file['rfilename'] for file in answer.json().get('siblings', [])]
            urls = [f'{HUB}/datasets/leey4n/KR3/resolve/main/{name}' for name in names
                    if name.endswith('.parquet') and subset in (Path(name).stem, *Path(name).parts[:-1])]
        if not urls:
            raise OSError(f'{HUB}: leey4n/KR3 has no parquet file of {subset}')
        files = [str(download(url, DOWNLOADS / f'{subset}_{i:04}.parquet')) for i, url in enumerate(urls)]
        with whole(listing) as f:
            json.dump(files, f)
    return json.loads(listing.read_text('utf-8'))


# --- reading ---------------------------------------------------------------------------------------------------------

def columns(names, where):
    """(text column, rating column or None) among the names of a table."""
    text = next((n for n in ('Review', 'review', 'document', 'comments', 'text') if n in names), None)
    if text is None:
        refuse(f'{where} has the columns {", ".join(map(str, names)) or "(none)"}; one of Review, document, comments or text is needed')
    return text, next((n for n in ('Rating', 'rating', 'label') if n in names), None)


def records(path):
    """(text, rating) pairs of a file, as they stand in it. Tables and lines alike are streamed."""
    path, kind = Path(path), Path(path).suffix.lower()
    if kind == '.parquet':
        import pyarrow
        import pyarrow.parquet
        try:
            table = pyarrow.parquet.ParquetFile(path)
            names = columns(table.schema_arrow.names, path)
            for batch in table.iter_batches(batch_size, columns=[n for n in names if n]):
                yield from zip(batch[names[0]].to_pylist(), batch[names[1]].to_pylist() if names[1] else [None] * len(batch))
        except (pyarrow.ArrowException, OSError) as e:
            refuse(f'{path} is no parquet file, or was cut short ({str(e).splitlines()[0]}); fetch it again')
        return
    with open(path, encoding=encoding, newline='' if kind == '.csv' else None) as f:
        if kind == '.txt':
            yield from ((line, None) for line in f)
        elif kind == '.jsonl':
            for n, line in enumerate(f, 1):
                try:
                    row = json.loads(line) if line.strip() else None
                except json.JSONDecodeError as e:
                    refuse(f'{path}, line {n}: not JSON ({e})')
                if row is not None:
                    text, stars = columns(row if isinstance(row, dict) else {}, f'{path}, line {n},')
                    yield row[text], row.get(stars)
        else:
            csv.field_size_limit(1 << 30)  # a review may be long
            rows = csv.DictReader(f, **({'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if kind == '.tsv' else {}))  # in .tsv a quote is a quote
            text, stars = columns(rows.fieldnames or [], path)
            yield from ((row[text], row[stars] if stars else None) for row in rows)


CONTROL = re.compile('[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]')


def clean(text):
    """A review as one line: composed letters (NFC; NFKC would turn ㅋㅋ into ᄏᄏ for good), each run of spaces and line breaks one space,
    no control characters or halves of surrogate pairs; and no ▁, which SentencePiece keeps for the space itself."""
    return ' '.join(CONTROL.sub('', unicodedata.normalize('NFC', text)).replace('▁', '_').split())


def read(name):
    """(rating, text, bits) of every review of a source: rating 0, 1, 2 or -1 (unknown), text clean, bits -log2 P where it is known."""
    if name == 'demo':
        yield from demo.reviews(n_reviews, seed)
        return
    if name in ('kr3', 'kr3_raw'):
        files = hub_dataset(name)
    elif name in GITHUB:
        base, remote = GITHUB[name]
        files = [download(f'{RAW}{base}/{file}', DOWNLOADS / f'{name}_{Path(file).stem}.tsv') for file in remote]
    else:
        files = [name]
    for file in files:
        try:
            for n, (text, stars) in enumerate(records(file), 1):
                text = clean(text) if isinstance(text, str) else ''
                unknown = stars is None or stars == '' or stars != stars
                if not unknown and str(stars) not in ('0', '1', '2', '0.0', '1.0', '2.0'):
                    refuse(f'{file}, review {n}: the rating is {stars!r}; it must be 0 (negative), 1 (positive), 2 (ambiguous) or empty')
                if text:
                    yield -1 if unknown else int(float(stars)), text, None
        except UnicodeError:
            refuse(f'{file} is not {encoding.removesuffix("-sig")}; {guess(file)}')


def guess(file):
    """What else a text file may be, in a clause that says what to do."""
    head = Path(file).read_bytes()[:100_000]
    if head.startswith((b'\xff\xfe', b'\xfe\xff')):
        return 'it looks like UTF-16: say --encoding=utf-16'
    try:
        head.decode('cp949')
    except UnicodeDecodeError as e:
        if e.start < len(head) - 2:
            return 'convert it to UTF-8 (iconv -f ENCODING -t UTF-8) or say --encoding='
    return 'it looks like cp949: say --encoding=cp949'


# --- the split -------------------------------------------------------------------------------------------------------

def in_validation(text):
    """A review's side hangs on its text alone: duplicates never part, and neither order nor other sources move it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big') < val_ratio * 2 ** 64


def split(folder, names):
    """Write <source>_train.txt, <source>_val.txt, train.txt and validation.txt, and meta.json with where they come from."""
    count, chars, bits, sources = Counter(), 0, 0.0, []
    with ExitStack() as files:
        both = [files.enter_context(whole(folder / f)) for f in ('train.txt', 'validation.txt')]
        for name, src in names.items():
            own = [files.enter_context(whole(folder / f'{name}_{f}.txt')) for f in ('train', 'val')]
            for rating, text, known in tqdm(read(src), desc=f'split {name}', unit=' reviews', mininterval=0.5):
                val = in_validation(text)
                line = f'{rating if rating >= 0 else "-"}\t{text}\n'
                own[val].write(line), both[val].write(line)
                count[name, val] += 1
                if val:
                    chars, bits = chars + len(text), bits + (known if known is not None else float('nan'))
            sources.append({'name': name, 'licence': LICENCES.get(src, "the file's own"), 'train_reviews': count[name, False], 'val_reviews': count[name, True]})
            print(f'{name}: {count[name, False]:,} reviews to train on, {count[name, True]:,} to validate; licence: {sources[-1]["licence"]}')
        for val, side in enumerate(('train', 'validate')):
            if not sum(n for (_, v), n in count.items() if v == val):
                refuse(f'there is no review left to {side}: val_ratio={val_ratio} of {sum(count.values())} reviews; give more, or another val_ratio')
    meta = {'sources': sources}
    if bits == bits:  # every review's probability is known: no model can do better on these than the grammar that wrote them
        meta['floor_bits_per_char'] = bits / chars
    with whole(folder / 'meta.json') as f:
        json.dump(meta, f, indent=1, ensure_ascii=False)


def read_split(path):
    """(rating, text) of every line of train.txt or validation.txt; rating -1 where none is known."""
    with open(path, encoding='utf-8', newline='\n') as f:
        for line in f:
            rating, _, text = line.rstrip('\n').partition('\t')
            yield (-1 if rating == '-' else int(rating)), text


# --- the three vocabularies ------------------------------------------------------------------------------------------

CONTROLS = ['</s>', '<s>', '<neg>', '<pos>', '<amb>']  # what a review is framed by; typed in a review they are plain characters


class Vocabulary:
    """What all three have: size, eos, starts (ids for the ratings 0, 1, 2 and, at -1, unknown), and
    encode(texts) → a list of ids a text; decode(ids) → the text, control ids left out."""

    def frame(self, ids):
        self.eos, *starts = ids
        self.starts = starts[1:] + starts[:1]  # rating 0, 1, 2, and the unknown one last: starts[-1]
        self.banned = starts                   # never written inside a review
        return self


class SentencePiece(Vocabulary):
    """Sub-words learned from the reviews themselves (BPE; Sennrich et al. 2016, arXiv:1508.07909). What no piece covers is
    spelled in bytes, so every text has an encoding and decodes to itself."""
    file = 'tokenizer.model'

    def __init__(self, proto):
        self.proto, self.sp = proto, sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.size = len(self.sp)
        self.frame([self.sp.piece_to_id(c) for c in CONTROLS]).banned.append(self.sp.unk_id())

    @classmethod
    def train(cls, path):
        lines, model = sum(1 for _ in read_split(path)), io.BytesIO()
        every = -(-lines // 200_000)  # 200,000 reviews say all there is to say about 8,000 pieces (2.5 s; all of KR3 would take minutes)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for _, text in islice(read_split(path), 0, None, every)), model_writer=model,
            model_type='bpe', vocab_size=vocab_size, byte_fallback=True, split_digits=True, control_symbols=CONTROLS[2:],
            normalization_rule_name='identity', remove_extra_whitespaces=False,  # what was written, as it was written
            max_sentence_length=1 << 16, hard_vocab_limit=False, minloglevel=2)
        return cls(model.getvalue())

    def dump(self):
        return self.proto

    def encode(self, texts):
        return self.sp.encode(texts)

    def decode(self, ids):
        return self.sp.decode([int(i) for i in ids])

    def as_tokenizer(self):
        """The same vocabulary for the `tokenizers` library: SentencePiece merges the pair that makes the piece of the best score first."""
        pieces = {self.sp.id_to_piece(i): i for i in range(self.size)}
        normal = [p for p, i in pieces.items() if not (self.sp.is_control(i) or self.sp.is_unknown(i) or self.sp.is_byte(i))]
        merges = [(p[:k], p[k:]) for p in normal for k in range(1, len(p)) if p[:k] in pieces and p[k:] in pieces]  # pieces are in score order
        t = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True))
        t.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')])
        t.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace('▁', ' '), tokenizers.decoders.ByteFallback(),
                                                  tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(' ', 1, 0)])
        t.add_special_tokens(['<unk>', *CONTROLS])
        return t


class HubTokenizer(Vocabulary):
    """Somebody else's vocabulary, from its tokenizer.json. Its unused ids are lent to the ratings. KoGPT2's normalises by NFKC
    (ㅋㅋ comes back as ᄏᄏ, ½ as 1⁄2) and knows no bytes, so that there decoding does not always give the text back."""
    file = 'tokenizer.json'

    def __init__(self, text):
        try:
            self.tokenizer = tokenizer = tokenizers.Tokenizer.from_str(text.decode())
        except Exception as e:  # the library raises nothing narrower
            raise ValueError(f'not a tokenizer.json: {e}') from None
        tokenizer.no_truncation(), tokenizer.no_padding()
        ids = tokenizer.get_vocab()
        unused = sorted((i, t) for t, i in ids.items() if re.fullmatch(r'[<\[]unused_?\d+[>\]]', t))
        frame = []
        for names in [('</s>', '<|endoftext|>', '<|im_end|>', '<eos>', '[SEP]'), *((c,) for c in CONTROLS[1:])]:
            known = next((n for n in names if n in ids), None) or (unused.pop(0)[1] if unused else None)
            if known is None:
                tokenizer.add_special_tokens([known := names[0]])
            frame.append(tokenizer.token_to_id(known))
        tokenizer.encode_special_tokens = True  # "</s>" typed in a review is text; an emoji KoGPT2 calls special is its one piece all the same
        self.size = max(tokenizer.get_vocab().values()) + 1
        self.frame(frame).banned.extend(i for t, i in ids.items() if t in ('<unk>', '[UNK]', '<pad>', '[PAD]', '<mask>', '[MASK]'))

    def dump(self):
        return self.tokenizer.to_str().encode()

    def encode(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids):
        control = {self.eos, *self.starts}
        return self.tokenizer.decode([int(i) for i in ids if int(i) not in control], skip_special_tokens=False)

    def as_tokenizer(self):
        return self.tokenizer


class Characters(Vocabulary):
    """One id per character, by hand: the oldest vocabulary. What was too rare to learn is <unk> and decodes to �."""
    file = 'characters.json'

    def __init__(self, text):
        self.characters = json.loads(text)
        self.ids = {c: i for i, c in enumerate(self.characters)}
        self.size, self.unk = len(characters), self.ids['<unk>']
        self.frame([self.ids[c] for c in CONTROLS]).banned.append(self.unk)

    @classmethod
    def train(cls, path):
        count = Counter()
        for _, text in read_split(path):
            count.update(text)
        kept = [c for c, n in sorted(count.items(), key=lambda item: (-item[1], item[0])) if n >= min_count]
        return cls(json.dumps([*CONTROLS, '<unk>', *kept]))

    def dump(self):
        return json.dumps(self.characters, ensure_ascii=False).encode()

    def encode(self, texts):
        return [[self.ids.get(c, self.unk) for c in text] for text in texts]

    def decode(self, ids):
        return ''.join('�' if i == self.unk else '' if i < self.unk else self.characters[i] for i in map(int, ids))

    def as_tokenizer(self):
        t = tokenizers.Tokenizer(tokenizers.models.WordLevel(self.ids, unk_token='<unk>'))
        t.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r'(?m).'), 'isolated')
        t.decoder = tokenizers.decoders.Fuse()
        t.add_special_tokens([*CONTROLS, '<unk>'])
        return t


def load_vocabulary(folder):
    """The vocabulary of a <mode> folder or a model folder. Raises ValueError in one sentence."""
    try:
        kind = json.loads((Path(folder) / 'meta.json').read_text('utf-8'))['vocabulary']
        return {v.file: v for v in (SentencePiece, HubTokenizer, Characters)}[kind]((Path(folder) / kind).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f'{folder} has no vocabulary that can be read ({e})') from None


def make_vocabulary(text_path):
    """The vocabulary that mode and model_name ask for."""
    if not model_name:
        return (Characters if mode == 'manual' else SentencePiece).train(text_path)
    if (Path(model_name) / 'meta.json').exists():
        return load_vocabulary(model_name)
    path = Path(model_name) / 'tokenizer.json' if Path(model_name).is_dir() else Path(model_name)
    if not path.exists():
        if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', model_name):
            raise ValueError(f"model_name='{model_name}' is neither a tokenizer.json nor a repository on the Hub (owner/name)")
        path = download(f'{HUB}/{model_name}/resolve/main/tokenizer.json', DOWNLOADS / model_name.replace('/', '--') / 'tokenizer.json')
        print(f'{model_name}: licence: {LICENCES.get(model_name, "see its page on the Hub")}')
    return HubTokenizer(path.read_bytes())


def keep_vocabulary(vocab, folder, meta):
    """Write what a reader of the bins needs: the vocabulary, meta.json, and the same vocabulary as Transformers reads it."""
    words = vocab.as_tokenizer()
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'split_special_tokens': True,  # typed control tokens stay text there too
              'clean_up_tokenization_spaces': False, 'eos_token': words.id_to_token(vocab.eos), 'bos_token': words.id_to_token(vocab.starts[-1])}
    meta = {'mode': mode, 'model_name': model_name, 'vocab_size': vocab.size, 'vocabulary': vocab.file, 'eos': vocab.eos,
            'starts': dict(zip(('0', '1', '2', 'unknown'), vocab.starts)), **meta,
            'versions': {lib.__name__: lib.__version__ for lib in (np, sentencepiece, tokenizers)}}
    files = {'tokenizer.json': words.to_str().encode(), vocab.file: vocab.dump(),
             'tokenizer_config.json': json.dumps(config, indent=1).encode(), 'meta.json': json.dumps(meta, indent=1, ensure_ascii=False).encode()}
    for name, text in files.items():
        with whole(folder / name, 'wb') as f:
            f.write(text)


# --- tokens ----------------------------------------------------------------------------------------------------------

def encode_side(vocab, text_path, bin_path):
    """Write the stream `</s> <rating> tokens… </s> <rating> tokens… </s>` as uint16. Returns what was counted."""
    reviews, tokens, chars, whole_rows = 0, 1, 0, 0
    lines = read_split(text_path)
    with whole(bin_path, 'wb') as f, tqdm(desc=f'encode {bin_path.name}', unit=' reviews', mininterval=0.5) as bar:
        while batch := list(islice(lines, batch_size)):
            ids = vocab.encode([text for _, text in batch])
            stream = np.array([i for (rating, _), review in zip(batch, ids) for i in (vocab.eos, vocab.starts[rating], *review)], dtype=np.uint16)
            stream.tofile(f)
            reviews, tokens, chars = reviews + len(batch), tokens + len(stream), chars + sum(len(text) for _, text in batch)
            whole_rows += sum(len(review) + 2 <= chunk_size for review in ids)
            bar.update(len(batch))
        np.array([vocab.eos], dtype=np.uint16).tofile(f)  # closes the last review
    print(f'{bin_path}: {tokens:,} tokens, {chars / max(1, tokens - 1 - 2 * reviews):.3f} characters each; '
          f'{whole_rows / reviews:.1%} of the reviews fit whole into a row of {chunk_size}')
    return {'reviews': reviews, 'tokens': tokens, 'chars': chars}


def main():
    if mode not in ('tokenizer', 'manual'):
        refuse(f"mode='{mode}': it is 'tokenizer' or 'manual'")
    if not 0 < val_ratio < 1:
        refuse(f'val_ratio={val_ratio}: it takes more than 0 and less than 1')
    if not 300 <= vocab_size <= 65536:  # 262 of them are bytes and control tokens; uint16 ends at 65,536
        refuse(f'vocab_size={vocab_size}: it takes 300 to 65536')
    if batch_size < 1 or n_reviews < 1:
        refuse('batch_size and n_reviews take 1 or more')
    known = ['demo', 'kr3', 'kr3_raw', *GITHUB]
    names = {(src if src in known else Path(src).stem): src for src in source.split(',')}
    for src in names.values():
        if src not in known and not (Path(src).is_file() and Path(src).suffix.lower() in ('.parquet', '.csv', '.tsv', '.jsonl', '.txt')):
            refuse(f"source '{src}' is neither one of {', '.join(known)} nor a .parquet .csv .tsv .jsonl .txt file that is there")
    folder = Path(output_dir or data_dir or f'data/{"+".join(names)}')
    try:
        if not data_dir:
            split(folder, names)
        texts = Path(data_dir or folder)
        for side in ('train.txt', 'validation.txt'):
            if not (texts / side).exists():
                refuse(f'{texts} has no {side}; leave --data_dir out to make it from --source=')
        vocab = make_vocabulary(texts / 'train.txt')
        if vocab.size > 65536:
            refuse(f'{vocab.size:,} ids do not fit into uint16; take a vocabulary of 65,536 at most')
        print(f'vocabulary: {vocab.size:,} ids' + (f', all that the text can fill of {vocab_size:,}' if mode == 'tokenizer' and not model_name and vocab.size < vocab_size else ''))
        counted = {f'{side}_{what}': n for side, text in (('train', 'train.txt'), ('val', 'validation.txt'))
                   for what, n in encode_side(vocab, texts / text, folder / mode / f'{side}.bin').items()}
        about = json.loads((texts / 'meta.json').read_text('utf-8')) if (texts / 'meta.json').exists() else {}
        keep_vocabulary(vocab, folder / mode, {**counted, **about})
    except (OSError, ValueError) as e:
        refuse(e)
    print(f'ready: python train.py --data_dir={folder} --out_dir=out/{folder.name}' + (f' --mode={mode}' if mode != 'tokenizer' else ''))


if __name__ == '__main__':
    main()
