"""The predictor against the authors', with converted weights: evaluation and training."""

import pytest
import torch

from itpn_mm.maskdino.predictor import Outputs, predict_masks
from itpn_mm.maskdino.targets import Target
from itpn_mm.maskdino.tokens import LevelTokens

from .golden import assert_close, build_predictor, index, load, state_of, take, theirs

pytestmark = pytest.mark.checklist('parity')

TRAINING = [name for name in index() if name.startswith('c')]
FIXTURES = [name for name in index() if name.startswith('b')] + TRAINING
CASES = [
    (name, case, box_init)
    for name, entry in index().items()
    if name.startswith('b')
    for case in entry['cases']
    for box_init in entry['initialize_box_types']
]


def tokens_of(tensors: dict, levels: int) -> LevelTokens:
    """Maps of a fixture as tokens, the finest level first."""
    maps = [tensors[f'x.{i}'] for i in range(levels)]
    return LevelTokens.from_maps(sorted(maps, key=lambda level: -level.shape[-2:].numel()))


@pytest.mark.parametrize(('name', 'case', 'box_init'), CASES)
def test_golden_predictor(name, case, box_init):
    entry, tensors = load(name)
    predictor = build_predictor(entry, state_of(entry, tensors), box_init=box_init).eval()
    found = take(tensors, f'{case}.')
    several = len(entry['initialize_box_types']) > 1
    # what the selection says of itself does not depend on `box_init`
    wanted = found | take(found, 'no.') | (take(found, f'{box_init}.') if several else {})
    memory = tokens_of(found, entry['kwargs']['levels'])
    features = found['mask_features']
    with torch.no_grad():
        content, box_logits, _ = predictor._select(memory, features)
        outputs = predictor(memory, features)
        predictor.training = True  # all sets, without denoising
        trained = predictor(memory, features)
    assert_close(content, wanted['dec_tgt'], entry)
    assert_close(box_logits.sigmoid(), wanted['dec_ref_unsigmoid'].sigmoid(), entry)
    (last,) = outputs.matching
    check(last, features, take(wanted, 'pred_'), entry)
    assert outputs.names == ('',)
    sets = dict(zip(trained.names, trained.matching, strict=True))
    check(sets[''], features, take(wanted, 'pred_'), entry)
    for i in range(entry['kwargs']['layers']):
        check(sets[f'd{i}.'], features, take(wanted, f'aux.{i}.pred_'), entry)
    if entry['kwargs']['two_stage']:
        check(sets['enc_'], features, take(wanted, 'interm.pred_'), entry)


def check(predictions: tuple, features: torch.Tensor, wanted: dict, entry: dict) -> None:
    cls_logits, boxes, mask_embeds = predictions
    assert wanted
    assert_close(cls_logits, wanted['logits'], entry)
    assert_close(boxes, wanted['boxes'], entry)
    if 'masks' in wanted:
        assert_close(predict_masks(mask_embeds, features), wanted['masks'], entry)


@pytest.mark.parametrize('name', TRAINING)
def test_golden_predictor_in_training(name, monkeypatch):
    entry, tensors = load(name)
    source = entry['weights_from'].removeprefix('state.* of ').removesuffix('.safetensors')
    source_entry, source_tensors = load(source)
    options = dict(box_init=entry['kwargs']['initialize_box_type'])
    predictor = build_predictor(entry, state_of(source_entry, source_tensors), **options).train()

    memory = tokens_of(tensors, entry['kwargs']['levels'])
    memory.tokens.requires_grad_()
    features = tensors['mask_features'].requires_grad_()
    targets = [
        Target(tensors[f'gt.{i}.labels'].long(), tensors[f'gt.{i}.boxes'], torch.zeros(n, 1, 1))
        for i, n in enumerate(entry['gt_counts'])
    ]
    give_draws(predictor, tensors, entry, monkeypatch)
    outputs = predictor(memory, features, targets)

    groups, slots, noisy = (int(n) for n in tensors['meta'])
    assert outputs.noise.num_groups == groups
    assert outputs.noise.content.shape[1] == noisy == groups * slots
    assert_close(outputs.noise.content, tensors['dn_query_content'], entry)
    assert_close(outputs.noise.box_logits, tensors['dn_query_box_unsigmoid'], entry)
    assert torch.equal(outputs.noise.blocked, tensors['attn_mask_blocked'].bool())
    assert torch.equal(outputs.noise.pairs.queries, tensors['map_known_indice'].long())

    values = named_values(outputs, features)
    for term in entry['loss_terms']:
        assert_close(values[term], tensors[term], entry)
    loss = sum(values[term].square().mean() for term in entry['loss_terms'])
    loss.backward()
    assert_close(loss, tensors['grad_loss'].squeeze(), entry)
    wanted = tokens_of(take(tensors, 'grad.'), entry['kwargs']['levels'])
    assert_close(memory.tokens.grad, wanted.tokens, entry)
    assert_close(features.grad, tensors['grad.mask_features'], entry)
    check_gradients(predictor, tensors, entry)


def give_draws(predictor, tensors: dict, entry: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the random draws of denoising by those of the fixture."""
    chosen = tensors['draw.rand_label'] < 0.5 * entry['kwargs']['noise_scale']
    assert torch.equal(chosen.nonzero()[:, 0], tensors['draw.chosen_indices'].long())
    new = torch.zeros(len(chosen), dtype=torch.long)
    new[chosen] = tensors['draw.new_labels'].long()
    add_noise = predictor.denoiser.add_noise
    monkeypatch.setattr(
        predictor.denoiser,
        'add_noise',
        lambda labels, boxes, **_: add_noise(
            labels, boxes, chosen, new, 2 * tensors['draw.rand_box'] - 1
        ),
    )


def named_values(outputs: Outputs, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """Predictions by the authors' names."""
    values = {}
    for part, predictions in (('out', outputs.matching), ('dn', outputs.denoising)):
        for name, (cls_logits, boxes, embeds) in zip(outputs.names, predictions, strict=False):
            where = f'{theirs(name)}.' if name else ''
            values[f'{part}.{where}pred_logits'] = cls_logits
            values[f'{part}.{where}pred_boxes'] = boxes
            values[f'{part}.{where}pred_masks'] = predict_masks(embeds, features)
    return values


def check_gradients(predictor: torch.nn.Module, tensors: dict, entry: dict) -> None:
    """Gradients of parameters, brought into our layout as the parameters are."""
    grads = take(tensors, 'grad.param.')
    norms = dict(zip(entry['grad_norm_names'], tensors['grad_norms'], strict=True))
    # the norm of what is renamed, or has its levels flipped, stays
    placed = {name: torch.full((1,), float(norm)) for name, norm in norms.items()}
    names = convert_names(placed, entry)
    ours = dict(predictor.named_parameters())
    assert len(names) == len(ours)
    for name, source in names.items():
        norm = torch.zeros(()) if ours[name].grad is None else ours[name].grad.norm()
        torch.testing.assert_close(norm, norms[source], rtol=1e-3, atol=1e-4)
        if source in grads and 'cross_attn' not in source:
            assert_close(ours[name].grad, grads[source], entry)


def convert_names(tensors: dict, entry: dict) -> dict[str, str]:
    """Our name -> the authors', for parameters of a predictor."""
    from itpn_mm.checkpoint.maskdino import _rules
    from itpn_mm.checkpoint.rules import compile_template, fill_template

    out = {}
    for rule in _rules(entry['x_order'] == 'high2low', entry['kwargs']['levels'], 0):
        for name in tensors:
            match = compile_template(rule.authors[0]).fullmatch(f'sem_seg_head.predictor.{name}')
            if match:
                out[fill_template(rule.ours, match.groupdict()).removeprefix('predictor.')] = name
    return out
