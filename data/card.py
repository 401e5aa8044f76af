"""The model card: what a model folder says of itself to people."""
HUB_LICENCES = {'CC BY-NC-SA 4.0': 'cc-by-nc-sa-4.0', 'CC BY-SA 4.0': 'cc-by-sa-4.0', 'CC0 1.0': 'cc0-1.0', 'MIT': 'mit'}


def card(model, meta, name):
    """The README.md of a model folder, as the Hub reads it: what the model is, what it was trained on and how long, its scores, and the
    licence of the data, which is the model's too."""
    c, decoder = model.config, model.config.arch == 'decoder'
    licences = sorted({source['licence'] for source in meta['sources']} | ({meta['vocabulary_licence']} if meta.get('vocabulary_licence') else set()))
    head = {'language': 'ko', 'license': HUB_LICENCES.get(licences[0], 'other') if len(licences) == 1 else 'other', 'pipeline_tag': 'text-generation',
            **({'library_name': 'transformers'} if decoder else {})}
    table = ''.join(f"| {s['name']} | {s['train_reviews']:,} | {s['licence']} |\n" for s in meta['sources'])
    begun = f"begun with the weights of {meta['base_model']}" if 'base_model' in meta else 'trained from scratch'
    text = f"""# {name}

{'A decoder (Qwen3 architecture)' if decoder else f'An MLP over the last {c.window} tokens'} of {sum(p.numel() for p in model.parameters()):,} parameters: {c.n_layers} layers, {c.d_model} wide, {begun}
to write Korean reviews of a given rating and to tell the rating of a review.

## Data

| source | reviews | licence |
|---|---|---|
{table}
Licences of all it was made of, which hold for the model, too: {', '.join(licences)}.{' Not for commercial use.' if any('NC' in one for one in licences) else ''}

## Scores

After {meta['tokens']:,} tokens ({meta['step']:,} steps): {meta['val_loss']:.4f} nats per token, {meta['bits_per_char']:.4f} bits per character on held-out reviews.
"""
    starts = meta['starts']
    if decoder:
        text += f"""
## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the Hub
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = [{meta['eos']}, {starts['1']}, *tokenizer.encode("김치찌개가", add_special_tokens=False)]  # a positive review; negative {starts['0']}, ambiguous {starts['2']}, unknown {starts['unknown']} in place of {starts['1']}
print(tokenizer.decode(model.generate(torch.tensor([ids]), max_new_tokens=100, do_sample=True)[0], skip_special_tokens=True))
```
"""
    return ''.join(['---\n', *(f'{key}: {value}\n' for key, value in head.items()), '---\n', text])
