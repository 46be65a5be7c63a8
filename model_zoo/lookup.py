"""Loads the things that a user names: turns an order into a job."""

from functools import partial

from model_zoo.architectures import build_target
from model_zoo.data import load_data
from model_zoo.released import generator_file, released_references
from weightgen.files.storage import sha256_file
from weightgen.generators import load_generator, method_of_file
from weightgen.labelled_data import LabelledData
from weightgen.order import Order, check_terms
from weightgen.pipeline import Job
from weightgen.references.zoo import ReferenceZoo
from weightgen.target.network import Target


def look_up(order: Order, data: LabelledData | None = None) -> Job:
    """The job of an order: each name is a registered one, or a file or folder; given `data` are not loaded again.

    Raises UnknownName or NotFound for names that do not exist, cheapest checks first; then the errors of `check_terms`
    and of the loaders.
    """
    path, arch = generator_file(order.generator), order.architecture
    build_target(arch)  # an unknown architecture is refused before anything is read
    check_terms(order, method_of_file(path))
    loaded = load_data(order.dataset) if data is None else data
    generator = load_generator(path)
    references = released_references(generator.name, arch, loaded.in_channels) if loaded.in_channels else None
    return Job(
        generator=generator,
        generator_sha256=sha256_file(path),
        data=loaded,
        target_for=partial(target_for, arch),
        references=ReferenceZoo.load(references) if references else None,
    )


def target_for(arch: str, data: LabelledData) -> Target:
    """The target network of `arch` for the examples and classes of `data`."""
    if data.in_features is not None:
        return build_target(arch, num_classes=data.num_classes, in_features=data.in_features)
    return build_target(arch, num_classes=data.num_classes, in_channels=data.in_channels or 1)
