"""One page that shows the model think: weights, vocabulary and forward pass in one HTML file.

    model → 8-bit rows and their scales → base64 ┐
    vocabulary → pieces and control ids ─────────┴→ JSON → page.html, in place of {{folder}} → PATH

The page is opened from the disk and needs no network. page.html is the second lesson: the forward
pass of model.py without a framework.
"""
import base64
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch

from parts.checkpoint import atomic_write
from parts.corpus import RATING_NAMES
from parts.errors import UserError
from parts.folder import language_of
from parts.vocabulary import Characters, SentencePiece

TEMPLATE = Path(__file__).with_name('page.html')
LARGEST = 127              # the largest whole number of 8 bits


def write_page(model, vocabulary, meta, path):
    """Write the page of a decoder to path. Returns its size in bytes. Raises UserError.

    The matrices stand there in 8 bits. That moves the logits a little and the bits per character
    next to nothing, see docs/LOG.md.
    """
    if model.config.arch != 'decoder':
        raise UserError('the page shows where attention looks, so '
                        'it takes a decoder, and this model has arch=ffn')
    spelling = page_vocabulary(vocabulary)
    known = language_of(meta)
    language = known or language_of_pieces(spelling['pieces'])
    folder = {
        'about': describe(model, meta),
        'beginning': '김치찌개가' if known == 'ko' else '',
        'lines': meta.get('unit', 'line') != 'line',           # a text may have several lines
        'config': asdict(model.config),
        'vocabulary': spelling,
        'ratings': page_ratings(meta['ratings'], vocabulary, language),
        'tensors': page_tensors(model),
    }
    text = json.dumps(folder, ensure_ascii=False, separators=(',', ':'))
    text = text.replace('<', '\\u003c')  # no piece may end the script that holds it
    page = TEMPLATE.read_text('utf-8').replace('{{language}}', language)
    page = page.replace('{{folder}}', text)
    with atomic_write(path) as file:
        file.write(page)
    return len(page.encode())


def describe(model, meta):
    """One line about the model: its size, how good it is, its data and their licences."""
    config = model.config
    n_parameters = sum(p.numel() for p in model.parameters())
    facts = [f'{n_parameters:,} parameters', f'{config.n_layers} layers of {config.d_model}']
    if 'bits_per_char' in meta:
        facts.append(f'{meta["bits_per_char"]:.3f} bits/char')
    for source in meta.get('sources', []):
        facts.append(f'{source["name"]} ({source["licence"]})')
    return ' · '.join(facts)


# --- the weights ---

def page_tensors(model):
    """{name: {dtype, shape, data, scale}} of every parameter.

    A row of data times its scale is a row of the parameter. The gains of the norms are few, and
    stay as they are.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float().cpu()
        scale = torch.ones(len(weight))
        if weight.ndim == 2:
            weight, scale = round_rows(weight)
        tensors[name] = {
            'dtype': str(weight.dtype).removeprefix('torch.'),
            'shape': list(weight.shape),
            'data': to_base64(weight),
            'scale': to_base64(scale),
        }
    return tensors


def round_rows(weight):
    """A matrix (O, I) → whole numbers (O, I), int8, and the scale (O,) of each row."""
    scale = weight.abs().amax(dim=1) / LARGEST
    scale[scale == 0] = 1.0                                   # a row of zeros
    rounded = (weight / scale[:, None]).round()               # -127 … 127
    return rounded.to(torch.int8), scale


def to_base64(tensor):
    """The bytes of a tensor, lowest byte first, as text."""
    array = tensor.contiguous().numpy()
    array = array.astype(array.dtype.newbyteorder('<'), copy=False)
    return base64.b64encode(array).decode('ascii')


# --- the vocabulary ---

def page_vocabulary(vocabulary):
    """What the page needs in order to encode, decode and show ids. Raises UserError.

    pieces: the text of every id, '' where no text spells it (control tokens, bytes); labels: what
    to show for it.
    """
    if isinstance(vocabulary, SentencePiece):
        page = sentencepiece_pieces(vocabulary.processor)
    elif isinstance(vocabulary, Characters):
        page = character_pieces(vocabulary.characters)
    else:
        raise UserError('the page can spell with SentencePiece or with characters; '
                        'this model has a tokenizer of the Hub')
    return page | {'eos': vocabulary.eos, 'banned': vocabulary.banned}


def sentencepiece_pieces(processor):
    """Pieces in the order of their scores, which is the order in which they merge."""
    pieces = []
    labels = []
    for id in range(len(processor)):
        name = processor.id_to_piece(id)
        if processor.is_control(id) or processor.is_unknown(id) or processor.is_byte(id):
            pieces.append('')
        else:
            pieces.append(name)
        labels.append(with_signs(name))
    first_byte = processor.piece_to_id('<0x00>')
    return {'mode': 'tokenizer', 'pieces': pieces, 'labels': labels, 'first_byte': first_byte}


def character_pieces(characters):
    """characters: the control tokens, <unk>, then the characters, in the order of their ids."""
    unknown = characters.index('<unk>')
    pieces = [''] * unknown + ['\ufffd'] + characters[unknown + 1:]
    labels = [with_signs(character) for character in characters]
    return {'mode': 'manual', 'pieces': pieces, 'labels': labels, 'unknown': unknown}


def language_of_pieces(pieces):
    """'ko' where most pieces that have letters have Hangul, else 'en': what the page is written in.
    """
    words = [piece for piece in pieces if any(character.isalpha() for character in piece)]
    n_korean = sum(re.search('[가-힣]', word) is not None for word in words)
    return 'ko' if 2 * n_korean > len(words) else 'en'


def with_signs(piece):
    """A piece with signs for what would not be seen: ␣ for a space, ⏎ for a line break."""
    return piece.replace('▁', '␣').replace(' ', '␣').replace('\n', '⏎')


def page_ratings(known, vocabulary, language):
    """[{n, start, name}] of the known ratings, as [0, 1, 2]. A text is read under each.

    Without ratings it is `<s>` alone, which has no name and is not shown.
    """
    ratings = []
    for n in known:
        english, korean = RATING_NAMES[n]
        start = vocabulary.start_ids[n]
        name = f'{korean} {english}' if language == 'ko' else english
        ratings.append({'n': n, 'start': start, 'name': name})
    return ratings or [{'n': 0, 'start': vocabulary.start_ids[-1], 'name': ''}]
