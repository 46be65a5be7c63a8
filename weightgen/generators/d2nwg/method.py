"""The options of d2nwg, and the declarations of its two modes."""

from dataclasses import dataclass, replace

from weightgen.method import Method, Options, option

SCHEDULERS = ("ddim", "dpm", "flow")
MAX_STEPS, MAX_GUIDANCE = 1000, 20.0


@dataclass(frozen=True, slots=True)
class SchedulerOptions(Options):
    """How latents are sampled."""

    scheduler: str = option("dpm", help="The scheduler that turns noise into latents.", choices=SCHEDULERS)
    steps: int = option(
        2,
        help="Steps of the scheduler. Few are best: most of what more steps add belongs to one network of the zoo.",
        low=1,
        high=MAX_STEPS,
    )
    guidance: float = option(
        1.0,
        help="Classifier-free guidance (arXiv:2207.12598): 1 is the condition as it is, 0 is none.",
        low=0,
        high=MAX_GUIDANCE,
    )


@dataclass(frozen=True, slots=True)
class D2nwgOptions(SchedulerOptions):
    """How latents are sampled, and how a sample is refined."""

    refinements: int | None = option(
        None,
        help="Steps of a sample along the gradient of its loss on the examples; all that were learnt if not given.",
        low=0,
    )


D2NWG = Method(
    name="d2nwg",
    title="Latent diffusion over weights: another seed gives another network for the same examples.",
    code="weightgen.generators.d2nwg.generator:D2nwg",
    options=D2nwgOptions,
    uses=frozenset({"target_accuracy"}),
    samples=True,
)
D2NWG_LAYERWISE = replace(
    D2NWG,
    name="d2nwg-layerwise",
    title="Latent diffusion over weights, window by window, for trunks of any depth.",
    code="weightgen.generators.d2nwg.layerwise:D2nwgLayerwise",
    options=SchedulerOptions,
)
