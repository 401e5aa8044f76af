"""From text to ids and back: three vocabularies with one interface.

    '너무 짜요'  →  SentencePiece  →  [276, 2009, 3517]       ▁너무 ▁짜 요: sub-words of the texts
                →  HubTokenizer   →  [12371, 12870, 8084]    somebody else's tokenizer.json
                →  Characters     →  [40, 23, 6, 26, 12]     one id per character

A text in the stream has a frame, `</s> <rating> ids… </s>`. Its tokens are CONTROL_TOKENS.
`sentencepiece` and `tokenizers` are loaded where they are needed, so that sample.py starts quickly.
"""
import io
import json
import math
import re
from collections import Counter
from itertools import islice
from pathlib import Path

from parts.checkpoint import read_json
from parts.corpus import LICENCES, RATING_TOKENS, hub_file, is_repository, read_split
from parts.errors import UserError, print0, user_path

MOST_IDS = 65536  # what uint16 can tell apart
CONTROL_TOKENS = ['</s>', '<s>', *RATING_TOKENS]  # typed in a text they are plain characters


class Vocabulary:
    """What the three have in common.

    size         how many ids there are
    eos          the id of `</s>`
    rating_ids   the start tokens of the ratings 0, 1, 2
    start_ids    the same, then `<s>`, which starts a text without a rating (its rating is -1)
    banned       ids that are never written inside a text
    mode         what --mode= calls it, tokenizer or manual
    file         the name of the vocabulary's file
    content      the bytes of that file
    licence      of one that was not learned here, '' where it is not known

    encode(texts)     a list of ids for each text; control ids are never among them
    decode(ids)       their text; control ids have none
    as_tokenizer()    the same for the `tokenizers` library, with which Transformers reads it; it
                      composes letters by NFC, as clean() does before a text comes here
    """
    mode = 'tokenizer'
    licence = ''

    def set_control_ids(self, control_ids, unknown_ids):
        """control_ids: those of CONTROL_TOKENS. unknown_ids: ids that stand for no text at all."""
        ids = [*control_ids, *unknown_ids]
        if len(set(ids)) < len(ids):
            raise UserError(f'it lacks one of {" ".join(CONTROL_TOKENS)}')
        self.eos, no_rating, *ratings = control_ids
        self.rating_ids = ratings
        self.start_ids = [*ratings, no_rating]
        self.unknown_ids = unknown_ids
        self.banned = [no_rating, *ratings, *unknown_ids]

    def cut(self, text, length):
        """A text as pieces of about this many characters whose ids, one after the other, are those
        of the text.
        """
        return [text]

    def n_unseen(self, text, ids):
        """How many characters of a text its ids do not tell, because they are `<unk>` or left out.

        White space that a vocabulary of the Hub leaves out is not among them.
        """
        return 0


# --- sub-words ---

class SentencePiece(Vocabulary):
    """Sub-words learned from the texts: BPE (Sennrich et al. 2016, arXiv:1508.07909).

    What no piece covers is spelled in bytes. So every text has ids, and they decode to that text.
    """
    file = 'tokenizer.model'

    def __init__(self, content):
        import sentencepiece
        self.content = content
        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.load_from_serialized_proto(content)
        self.size = len(self.processor)
        control_ids = [self.processor.piece_to_id(token) for token in CONTROL_TOKENS]
        self.set_control_ids(control_ids, [self.processor.unk_id()])
        if not self.processor.is_byte(self.processor.piece_to_id('<0x00>')):
            raise UserError('it lacks the pieces of single bytes')

    @classmethod
    def train(cls, path, vocab_size):
        """Learn vocab_size pieces from train.txt, or as many as it can fill. Raises UserError."""
        import sentencepiece
        sentences = sample_sentences(path)
        spaces = any('  ' in sentence for sentence in sentences)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                max_sentence_length=64_000,            # bytes
                model_writer=model,
                model_type='bpe',
                vocab_size=vocab_size,
                hard_vocab_limit=False,                # fewer pieces where the text is short
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name='identity',    # what was written, as it was written
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=spaces,   # one piece for an indentation
                control_symbols=RATING_TOKENS,         # </s> and <s> it has anyway
                minloglevel=2,
            )
        except RuntimeError as error:
            least = re.search(r' vs (\d+)', str(error))
            if least:
                reason = (f'its characters alone take {least[1]} ids; '
                          f'say --vocab_size={least[1]} or more')
            else:
                reason = f'no pieces can be learned ({error})'
            raise UserError(f'{path}: {reason}') from None
        return cls(model.getvalue())

    def encode(self, texts):
        return self.processor.encode(texts)

    def cut(self, text, length):
        """At single spaces: no piece reaches across one, and the next text begins as if after one.
        """
        pieces = []
        begin = 0
        for space in re.finditer('(?<! ) (?=[^ ])', text):
            if space.start() - begin >= length:
                pieces.append(text[begin:space.start()])
                begin = space.end()
        return [*pieces, text[begin:]]

    def decode(self, ids):
        return self.processor.decode([int(i) for i in ids])

    def as_tokenizer(self):
        """SentencePiece merges first the neighbours that make the piece of the best score.

        `tokenizers` wants the merges in that order. The pieces stand in the order of their scores,
        so it is theirs; each piece comes with every way to make it of two others.
        """
        from tokenizers import Tokenizer, decoders, models, normalizers
        pieces = [self.processor.id_to_piece(i) for i in range(self.size)]
        ids = {piece: i for i, piece in enumerate(pieces)}
        learned = pieces[ids['<0xFF>'] + 1:]  # after the control tokens and the 256 bytes
        merges = []
        for piece in learned:
            for k in range(1, len(piece)):
                left, right = piece[:k], piece[k:]
                if left in ids and right in ids:
                    merges.append((left, right))

        tokenizer = Tokenizer(
            models.BPE(ids, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([
            normalizers.NFC(),
            normalizers.Prepend('▁'),
            normalizers.Replace(' ', '▁'),
        ])
        tokenizer.decoder = decoders.Sequence([
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(' ', 1, 0),
        ])
        tokenizer.add_special_tokens(['<unk>', *CONTROL_TOKENS])
        return tokenizer


def sample_sentences(path, n_texts=200_000, longest=16_000, most_bytes=100_000_000):
    """At most n_texts of train.txt, evenly spread: enough to learn 8,000 pieces from.

    SentencePiece would skip a long text, so it gets it in parts of at most `longest` characters.
    Of very long texts it gets every second part, or every third, so that there are about most_bytes
    at most. Returns a list: an error in a generator would have to come through SentencePiece.
    """
    with open(path, 'rb') as file:
        n_lines = sum(1 for _ in file)
    if not n_lines:
        raise UserError(f'{path} is empty')
    n_bytes = Path(path).stat().st_size
    step = math.ceil(n_lines / n_texts)
    # SentencePiece keeps this block for itself, and would skip what has one
    texts = (text.replace('▅', '█') for _, text in read_split(path, step))
    parts = (text[k:k + longest] for text in texts for k in range(0, len(text), longest))
    return list(islice(parts, 0, None, math.ceil(n_bytes / step / most_bytes)))


# --- from the Hub ---

EOS_NAMES = ['</s>', '<|endoftext|>', '<|im_end|>', '<eos>', '[SEP]']
UNKNOWN_NAMES = ['<unk>', '[UNK]', '<pad>', '[PAD]', '<mask>', '[MASK]']


class HubTokenizer(Vocabulary):
    """Somebody else's vocabulary, from its tokenizer.json. It lends its unused ids to the ratings.

    Decoding does not always give the text back: KoGPT2's normalises by NFKC (ㅋㅋ becomes ᄏᄏ,
    ½ becomes 1⁄2) and knows no bytes.
    """
    file = 'tokenizer.json'

    def __init__(self, content):
        from tokenizers import Tokenizer
        try:
            tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f'not a tokenizer.json ({error})') from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.post_processor = None  # it would put tokens of its own around a text
        tokenizer.encode_special_tokens = True  # "</s>" typed in a text is text
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        unknown_ids = [i for token, i in ids.items() if token in UNKNOWN_NAMES]
        self.set_control_ids(self.borrow_control_ids(ids), unknown_ids)
        self.content = tokenizer.to_str().encode()
        self.size = max(tokenizer.get_vocab().values()) + 1

    def __reduce__(self):
        return HubTokenizer, (self.content,)                  # pickled, it forgets what was set

    def borrow_control_ids(self, ids):
        """The id of each control token: that of its name, or of an unused token, or a new one."""
        unused = [token for token in ids if re.fullmatch(r'[<\[]unused_?\d+[>\]]', token)]
        unused.sort(key=ids.get)
        borrowed = []
        for names in [EOS_NAMES, *([token] for token in CONTROL_TOKENS[1:])]:
            for name in names + unused:
                if name in ids and ids[name] not in borrowed and not self.can_be_typed(name, ids):
                    break
            else:
                name = names[0] if names[0] not in ids else f'<{names[0]}>'
                self.tokenizer.add_special_tokens([name])
            borrowed.append(self.tokenizer.token_to_id(name))
        return borrowed

    def can_be_typed(self, name, ids):
        """Does a text that holds this name get its id?"""
        return ids[name] in self.tokenizer.encode(name, add_special_tokens=False).ids

    def encode(self, texts):
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids):
        control_ids = {self.eos, *self.start_ids}
        plain = [int(i) for i in ids if i not in control_ids]
        return self.tokenizer.decode(plain, skip_special_tokens=False)

    def n_unseen(self, text, ids):
        if self.decode(ids) == text:
            return 0
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        covered = bytearray(len(text))  # of each character: 1 by <unk>, 2 by a token, 3 by both
        for i, (first, end) in zip(encoding.ids, encoding.offsets):
            by = 1 if i in self.unknown_ids else 2
            for n in range(first, end):
                covered[n] |= by
        return sum(by < 2 and c != ' ' and (by == 1 or not c.isspace())
                   for by, c in zip(covered, text))

    def as_tokenizer(self):
        from tokenizers import Tokenizer, normalizers
        tokenizer = Tokenizer.from_str(self.content.decode())
        composes = re.search('NFK?C', json.dumps(json.loads(self.content)['normalizer']))
        if not composes:
            steps = [normalizers.NFC()]
            if tokenizer.normalizer:
                steps.append(tokenizer.normalizer)
            tokenizer.normalizer = normalizers.Sequence(steps)
        return tokenizer


# --- characters ---

class Characters(Vocabulary):
    """One id per character: the oldest vocabulary. A rare character is <unk> and decodes to �."""
    mode = 'manual'
    file = 'characters.json'

    def __init__(self, content):
        self.content = content
        self.characters = json.loads(content)  # the control tokens, <unk>, then the characters
        head = [*CONTROL_TOKENS, '<unk>']
        whole = isinstance(self.characters, list) and self.characters[:len(head)] == head
        if not whole or not all(isinstance(character, str) for character in self.characters):
            raise UserError('it is no list of characters')
        if len(set(self.characters)) < len(self.characters):
            raise UserError('it has a character twice')
        self.ids = {character: i for i, character in enumerate(self.characters)}
        self.size = len(self.ids)
        self.unk = self.ids['<unk>']
        self.set_control_ids([self.ids[token] for token in CONTROL_TOKENS], [self.unk])

    @classmethod
    def train(cls, path, min_count):
        """All characters that train.txt has min_count times or more, the commonest first; no more
        than there are ids.
        """
        count = Counter()
        for _, text in read_split(path):
            count.update(text)
        by_count = sorted(count.items(), key=lambda item: (-item[1], item[0]))
        kept = [character for character, n in by_count if n >= min_count]
        characters = [*CONTROL_TOKENS, '<unk>', *kept][:MOST_IDS]
        return cls(json.dumps(characters, ensure_ascii=False).encode())

    def encode(self, texts):
        return [[self.ids.get(character, self.unk) for character in text] for text in texts]

    def cut(self, text, length):
        return [text[k:k + length] for k in range(0, len(text), length)]

    def decode(self, ids):
        # below <unk> are the control tokens
        return ''.join('�' if i == self.unk else self.characters[i] for i in ids if i >= self.unk)

    def n_unseen(self, text, ids):
        return ids.count(self.unk)

    def as_tokenizer(self):
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
        tokenizer = Tokenizer(models.WordLevel(self.ids, unk_token='<unk>'))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'(?m).'), 'isolated')
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([*CONTROL_TOKENS, '<unk>'])
        return tokenizer


# --- finding one ---

VOCABULARIES = {vocabulary.file: vocabulary
                for vocabulary in (SentencePiece, HubTokenizer, Characters)}


def load_vocabulary(folder):
    """The vocabulary of a <mode> folder of prepare.py's or of a model folder. Raises UserError."""
    folder = Path(folder)
    meta = read_json(folder / 'meta.json')
    file = meta.get('vocabulary')
    if not isinstance(file, str) or file not in VOCABULARIES:  # no other name becomes a path
        raise UserError(f'{folder} has no vocabulary that can be read: meta.json calls it {file!r} '
                        '(of a data folder, name its tokenizer/ or manual/)')
    try:
        vocabulary = VOCABULARIES[file]((folder / file).read_bytes())
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, UserError) as error:
        raise UserError(f'{folder} has no vocabulary that can be read '
                        f'({type(error).__name__}: {error})') from None
    licence = meta.get('vocabulary_licence')
    if isinstance(licence, str) and licence.isprintable():    # somebody else may have written it
        vocabulary.licence = licence
    return vocabulary


def vocabulary_files(folder):
    """{name: bytes} of all that a model folder keeps of the vocabulary in a <mode> folder.

    Raises UserError.
    """
    files = {}
    for name in ('tokenizer.json', 'tokenizer_config.json', load_vocabulary(folder).file):
        try:
            files[name] = Path(folder, name).read_bytes()
        except OSError as error:
            raise UserError(f'{folder}/{name} cannot be read: {error.strerror}') from None
    return files


def find_vocabulary(model_name, revision=None):
    """The vocabulary that --model_name= names. Raises UserError.

    model_name: a folder with a vocabulary, a tokenizer.json, or a Hub repository: owner/name or
    owner/name@revision.
    """
    path = user_path(model_name)
    if (path / 'meta.json').exists():
        return load_vocabulary(path)
    file = path / 'tokenizer.json' if path.is_dir() else path
    licence = ''
    if not file.exists():
        repository, _, named_revision = model_name.partition('@')
        if path.is_dir() or not is_repository(repository):
            raise UserError(f"model_name='{model_name}' is no tokenizer.json, folder with a "
                            f'vocabulary, or Hub repository (owner/name)')
        file = hub_file(repository, 'tokenizer.json', named_revision or revision)
        licence = LICENCES.get(repository, '')
        print0(f'{model_name}: commit {file.parent.name[:7]}; '
               f'licence: {licence or "see its page on the Hub"}')
    try:
        vocabulary = HubTokenizer(file.read_bytes())
    except (OSError, UserError) as error:
        raise UserError(f'{file}: {error}') from None
    vocabulary.licence = licence
    return vocabulary


# --- on a terminal ---

# What a terminal would take for a command: all control characters but tab and line break
TERMINAL_COMMAND = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f]')


def printable(text):
    """A text that a model wrote, with � for what would command the terminal that shows it."""
    return TERMINAL_COMMAND.sub('\ufffd', text)
