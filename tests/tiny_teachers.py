"""Shrinks the parts of a config with a CLIP teacher: the teacher's file, its view, the masks."""

from pathlib import Path

from mmengine.config import Config

from .test_pretraining.clip_files import save_openai

PATCH = 16  # of all students
TEACHERS = {'clip_vit-base-p16.pt': (16, 512), 'clip_vit-large-p14.pt': (14, 768)}
# The auxiliary head needs two blocks after 3/4 of the depth.
DEPTH = 5


def shrink_teacher(cfg: Config, whole: dict, side: int, work_dir: Path) -> None:
    """Scale what depends on the student's size, and write the file that the config asks for.

    The patch and width of the teacher are the real ones of the file's name.

    Args:
        cfg: Config with the model shrunk.
        whole: The model before that.
        side: Side of the student's images now.
        work_dir: Where the file goes.
    """
    model, pipeline = cfg.model, cfg.train_dataloader.dataset.pipeline
    patch, width = TEACHERS[Path(whole.teacher.checkpoint).name]
    path = work_dir / whole.teacher.checkpoint
    save_openai(path, patch=patch, grid=side // PATCH, depth=1, out=width)

    def scale(value: int, unit: int = 1) -> int:
        return value * (side // unit) // (whole.backbone.img_size // unit)

    model['teacher'].update(checkpoint=str(path), img_size=scale(whole.teacher.img_size))
    crop, masks = pipeline[3], pipeline[4]
    crop.update(size=scale(crop['size']), second_size=scale(crop['second_size']))
    masks['input_size'] = scale(masks['input_size'], PATCH)
    masks.update(num_masking_patches=6, max_num_patches=6, min_num_patches=2)
    if 'aux_head' in model:
        model['aux_head']['grid'] = tuple(scale(n, PATCH) for n in whole.aux_head.grid)
        model['backbone']['arch']['depths'] = (1, 1, DEPTH)
