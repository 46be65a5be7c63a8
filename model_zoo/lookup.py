"""What a user names, looked up: a generator, an architecture and a data set become one job."""

from functools import partial

from model_zoo.architectures import build_target
from model_zoo.data import load_data
from model_zoo.released import generator_file, released_references
from weightgen.files.storage import sha256_file
from weightgen.generators import load_generator
from weightgen.labelled_data import LabelledData
from weightgen.pipeline import Job
from weightgen.references.zoo import ReferenceZoo
from weightgen.target.network import Target


def look_up(*, generator: str, arch: str, data: str) -> Job:
    """The job of making weights of `arch` for the classes of `data`, each given by name (or file).

    Raises UnknownName or NotFound for what does not exist, cheapest first, and what the loaders raise for bad files.
    """
    path = generator_file(generator)
    build_target(arch)  # an unknown architecture is told before anything is read
    loaded = load_data(data)
    made_by = load_generator(path)
    references = released_references(made_by.name, arch, loaded.in_channels) if loaded.in_channels else None
    return Job(
        generator=made_by,
        generator_sha256=sha256_file(path),
        data=loaded,
        target_for=partial(target_for, arch),
        references=ReferenceZoo.load(references) if references else None,
    )


def target_for(arch: str, data: LabelledData) -> Target:
    """The target network of `arch` that takes the examples of `data` and has its classes."""
    if data.in_features is not None:
        return build_target(arch, num_classes=data.num_classes, in_features=data.in_features)
    return build_target(arch, num_classes=data.num_classes, in_channels=data.in_channels or 1)
