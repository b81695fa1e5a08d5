"""CLIP files made here: a small image tower in the layouts of the released ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, DEPTH, OUT = 64, 2, 24


def openai_state(
    patch: int = 16, grid: int = 14, width: int = WIDTH, depth: int = DEPTH, out: int = OUT
) -> dict[str, Tensor]:
    """An image tower under OpenAI's names, and some of the names beside it."""
    shapes = {
        'class_embedding': (width,),
        'positional_embedding': (1 + grid * grid, width),
        'proj': (width, out),
        'conv1.weight': (width, 3, patch, patch),
        **{f'ln_{part}.{kind}': (width,) for part in ('pre', 'post') for kind in KINDS},
    }
    for i in range(depth):
        block = f'transformer.resblocks.{i}'
        for name, sizes in (
            ('ln_1', (width,)),
            ('ln_2', (width,)),
            ('attn.out_proj', (width, width)),
            ('mlp.c_fc', (4 * width, width)),
            ('mlp.c_proj', (width, 4 * width)),
        ):
            shapes[f'{block}.{name}.weight'] = sizes
            shapes[f'{block}.{name}.bias'] = sizes[:1]
        shapes[f'{block}.attn.in_proj_weight'] = (3 * width, width)
        shapes[f'{block}.attn.in_proj_bias'] = (3 * width,)
    state = {f'visual.{name}': torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    state['text_projection'] = torch.randn(8, out)
    state['positional_embedding'] = torch.randn(7, 8)
    state['transformer.resblocks.0.ln_1.weight'] = torch.ones(8)
    state['logit_scale'] = torch.tensor(4.6)
    return state


KINDS = ('weight', 'bias')


def save_openai(path: Path, **kwargs) -> dict[str, Tensor]:
    """Write a state dict as ``torch.save`` does; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = openai_state(**kwargs)
    torch.save(state, path)
    return state


class _Node(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def save_torchscript(path: Path, state: dict[str, Tensor]) -> None:
    """Write an archive as OpenAI's: a TorchScript module with these tensors, half in float16."""
    root = _Node()
    for index, (name, tensor) in enumerate(state.items()):
        *folders, leaf = name.split('.')
        module = root
        for folder in folders:
            if folder not in dict(module.named_children()):
                module.add_module(folder, _Node())
            module = getattr(module, folder)
        tensor = tensor.half() if index % 2 else tensor
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    root.register_buffer('input_resolution', torch.tensor(224))
    # What else a module may hold, and an archive names functions for.
    root.numbers, root.names, root.device = [1, 2], {'one': [1.5]}, torch.device('cpu')
    torch.jit.save(torch.jit.script(root), path)


def save_folder(path: Path, state: dict[str, Tensor], **changes) -> None:
    """Write the same tower as a folder of `transformers`."""
    width = state['visual.class_embedding'].numel()
    tower = {k.removeprefix('visual.'): v for k, v in state.items() if k.startswith('visual.')}
    theirs = {
        'vision_model.embeddings.class_embedding': tower['class_embedding'],
        'vision_model.embeddings.position_embedding.weight': tower['positional_embedding'],
        'vision_model.embeddings.patch_embedding.weight': tower['conv1.weight'],
        'visual_projection.weight': tower['proj'].t(),
        'text_projection.weight': torch.zeros(2, 2),
        'logit_scale': torch.tensor(4.6),
    }
    for kind in KINDS:
        theirs[f'vision_model.pre_layrnorm.{kind}'] = tower[f'ln_pre.{kind}']
        theirs[f'vision_model.post_layernorm.{kind}'] = tower[f'ln_post.{kind}']
        for i in range(DEPTH):
            old, new = f'transformer.resblocks.{i}', f'vision_model.encoder.layers.{i}'
            parts = tower[f'{old}.attn.in_proj_{kind}'].chunk(3)
            for name, tensor in (
                *zip(('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'), parts),
                ('self_attn.out_proj', tower[f'{old}.attn.out_proj.{kind}']),
                ('layer_norm1', tower[f'{old}.ln_1.{kind}']),
                ('layer_norm2', tower[f'{old}.ln_2.{kind}']),
                ('mlp.fc1', tower[f'{old}.mlp.c_fc.{kind}']),
                ('mlp.fc2', tower[f'{old}.mlp.c_proj.{kind}']),
            ):
                theirs[f'{new}.{name}.{kind}'] = tensor
    path.mkdir(parents=True)
    theirs = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in theirs.items()
    }
    save_file(theirs, path / 'model.safetensors')
    vision = dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_hidden_layers=DEPTH,
        hidden_act='quick_gelu',
        layer_norm_eps=1e-5,
    )
    config = dict(model_type='clip', vision_config={**vision, **changes})
    (path / 'config.json').write_text(json.dumps(config))
