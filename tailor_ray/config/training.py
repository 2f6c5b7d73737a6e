"""`training`: losses, data of a round, optimizer, parallelism, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tailor_ray.config.base import OPERATIONAL, Section


class LoraConfig(Section):
    """Low-rank adapters instead of all weights; merged into the student at export."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: int = Field(default=32, ge=1)
    """Scale; the adapter counts `alpha / rank`."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the adapted modules, as peft's `target_modules`."""


class TrainingConfig(Section):
    """How the student learns from lessons and from its own mistakes. Defaults are the reference's where it has them."""

    epochs: float = Field(default=10, gt=0)
    """Passes over the round's examples."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of a round, however many examples it has; None takes `epochs`."""
    learning_rate: float = Field(default=7e-6, gt=0)
    """Peak of the schedule. Pretrained students stand 5e-6 to 5e-5 for all weights (the smallest 1e-4), adapters 1e-4
    to 5e-4; 2e-3 is for the tiny student, which is made from scratch."""
    round_decay: float = Field(default=1.0, gt=0, le=1)
    """The peak of round r is `learning_rate · round_decay^(r-1)`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up; `linear` and `cosine` end at `final_learning_rate`."""
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """Where `linear` and `cosine` end, as a share of the peak."""
    warmup_steps: int = Field(default=100, ge=0)
    """Linear warm-up; at most a tenth of the round's steps are spent on it."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Global norm at which gradients are clipped; 0 switches clipping off."""
    batch_size: int = Field(default=16, ge=1)
    """Examples per step over all workers; never two of the same question."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of prompt plus completion; longer completions are cut, longer prompts skipped, both are counted."""

    prompt_weight: float = Field(default=0.1, ge=0)
    """Weight of prompt tokens in the MLE term; rationale tokens weigh 1."""
    reflection: Literal["triplet", "orpo", "redi", "none"] = "triplet"
    """What the self-reflection term makes of the student's mistakes. `triplet`, the paper's, parts the hidden states of
    right and wrong rationales. The others part their likelihoods and need no other right rationale: `orpo` is the
    log-sigmoid of the odds ratio of rationale and mistake, by the mean over their tokens; `redi` takes the mistake's
    mean log-likelihood itself and wants a small `learning_rate`. `none` learns from the teacher alone."""
    triplet_weight: float = Field(default=0.5, ge=0)
    """Weight of the term `triplet`; 0 switches it off."""
    triplet_margin: float = Field(default=1.0, ge=0)
    """Margin of the term `triplet`."""
    triplet_representation: Literal["last", "mean"] = "last"
    """What stands for a rationale: the hidden state of its last token, or the mean over its tokens."""
    triplet_prompt_gradient: Literal["attached", "detached"] = "attached"
    """Whether the triplet term's gradient flows through the prompt; `detached` is the reference's way, and dearer."""
    rationale_cap: int = Field(default=192, ge=1)
    """Tokens of a rationale that the triplet term sees; likelihoods are those of whole rationales."""
    orpo_weight: float = Field(default=0.1, ge=0)
    """Weight of the term `orpo`; 0 switches it off."""
    redi_weight: float = Field(default=0.8, ge=0)
    """Weight of the term `redi`, beside the mean over all targets, those of prompts too; 0 switches it off."""
    redi_floor: float = Field(default=2.0, gt=0)
    """Nats per token from which a mistake is unlikely enough: `redi` pushes it no further, lest it runs away."""

    start: Literal["last", "base"] = "last"
    """Continue from the previous round's student, or begin each round with the student as given."""
    lessons: Literal["all", "latest", "replay"] = "all"
    """Lessons of all rounds, of the latest, or the latest and a share of the earlier ones."""
    replay_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the earlier lessons that `replay` keeps."""
    feedback: bool = True
    """Learn from lessons of kind feedback; off leaves the plain rationales, and no feedback is asked for."""
    rationales: int | None = Field(default=None, ge=1)
    """Rationales of a question that are learnt from, of those that were asked for or that a committee wrote; None takes
    all. Feedback is not among them."""
    choose: Literal["first", "fit"] = "first"
    """Which ones: any, always the same, or those that fit the student as given best, by a forward pass on CPU each."""
    fit_by: Literal["nll", "rank"] = "nll"
    """What fits: the mean negative log-likelihood of a rationale's tokens, or their mean rank; the least is best."""
    critique: bool = False
    """One more example per lesson of kind feedback: after question, own mistake and feedback comes the corrected
    rationale. Exams show the question alone all the same."""
    max_negatives: int = Field(default=4, ge=1)
    """Mistakes per question that may serve as negatives."""
    max_positives: int = Field(default=10, ge=1)
    """Other correct rationales per question that may serve as positives."""
    own_positives: bool = True
    """The student's own correct attempts may serve as positives."""
    own_correct: int = Field(default=0, ge=0)
    """The student's own correct attempts of the latest exam that are learnt as examples: so many distinct ones per
    question, whether it has lessons or not."""
    own_correct_weight: float = Field(default=1.0, gt=0)
    """Weight of such an example, in both terms; a lesson's is 1."""
    gold_rationales: bool = False
    """The task's gold rationales may serve as positives."""
    select: Literal["last", "validation_loss"] = "last"
    """Which student of a round is kept: the last, or the best of `candidates` by the loss of the validation questions'
    own rationales."""
    candidates: int = Field(default=4, ge=2)
    """Students, evenly spread over a round's steps, that `select` chooses among."""

    workers: Annotated[int, OPERATIONAL] = Field(default=1, ge=1)
    """Ray Train workers."""
    cpus_per_worker: Annotated[float, OPERATIONAL] = Field(default=1, gt=0)
    """CPUs that Ray reserves for a worker."""
    threads: Annotated[int | Literal["auto"], OPERATIONAL] = "auto"
    """Torch threads of a worker on CPU; auto takes the node's cores, divided by its workers."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], OPERATIONAL] = 1
    """DeepSpeed ZeRO stage; in half precision 0 runs as 1. With 3 no worker's device holds the whole student."""
    offload_optimizer: Annotated[bool, OPERATIONAL] = False
    """Optimizer states in host memory; needs ZeRO 1 or higher."""
    offload_parameters: Annotated[bool, OPERATIONAL] = False
    """Parameters in host memory; needs ZeRO 3."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations; auto is bfloat16 on GPUs that have it, float32 elsewhere."""
    attention: Annotated[Literal["auto", "tree", "separate"], OPERATIONAL] = "auto"
    """`tree` computes a prompt once for its rationales, `separate` once for each; auto tries the tree on the model."""
    attention_kernel: Annotated[Literal["sdpa", "flash_attention_2", "eager"], OPERATIONAL] = "sdpa"
    """Of the separate passes; the tree has kernels of its own."""
    gradient_checkpointing: Annotated[bool, OPERATIONAL] = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: Annotated[bool, OPERATIONAL] = False
    """`torch.compile` the student; pays off on long runs on GPUs only."""
    lora: LoraConfig | None = None
    """Train low-rank adapters; None trains all weights."""
    micro_batch_tokens: Annotated[int, OPERATIONAL] = Field(default=16384, ge=16)
    """Tokens that one forward pass holds at most; lower it when memory runs out. Their logits alone take 4 bytes per
    token and entry of the vocabulary, three times over: of 49,152 entries 2,048 tokens take 1.2 GB, which suits a CPU,
    and 16,384 take 10 GB, which suits a GPU of 24 GB and more."""
    accumulation: Annotated[int, OPERATIONAL] = Field(default=1, ge=1)
    """Forward passes per step and worker at least; more are made where `micro_batch_tokens` asks for them."""

    checkpoint_every_steps: Annotated[int | None, OPERATIONAL] = Field(default=None, ge=1)
    """Steps between two checkpoints; None writes one a minute, and fewer where they would cost more than a twentieth of
    the time."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """Steps skipped in a row (overflow, NaN or Inf) that end the stage; without loss scaling the first one does."""
    max_failures: Annotated[int, OPERATIONAL] = Field(default=3, ge=0)
    """Lost workers or memory shortages after which the stage fails; each one goes on from the last checkpoint."""
    greedy_check: Annotated[int, OPERATIONAL] = Field(default=32, ge=0)
    """Validation questions that the student must answer alike in transformers and in the engines before its round is
    committed; 0 leaves it out."""

    @property
    def reflection_weight(self) -> float:
        """Weight of the chosen self-reflection term; 0 where there is none."""
        weights = {"triplet": self.triplet_weight, "orpo": self.orpo_weight, "redi": self.redi_weight}
        return weights.get(self.reflection, 0.0)

    @property
    def pairs(self) -> Literal["triplet", "likelihood", "none"]:
        """What the self-reflection term compares.

        With `triplet` that is a rationale with another one and a mistake, with `likelihood` a rationale with a mistake.
        """
        if not self.reflection_weight:
            return "none"
        return "triplet" if self.reflection == "triplet" else "likelihood"

    @property
    def detached(self) -> bool:
        """Whether the self-reflection term sends no gradient into the prompt; only the term `triplet` can."""
        return self.pairs == "triplet" and self.triplet_prompt_gradient == "detached"

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("training.offload_optimizer needs training.zero_stage of 1 or higher")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("training.offload_parameters needs training.zero_stage=3")
        if self.accumulation * self.workers > self.batch_size:
            raise ValueError(
                f"training.batch_size={self.batch_size} cannot be split into training.accumulation={self.accumulation} "
                f"passes on training.workers={self.workers}: raise batch_size or lower one of the others"
            )
        if self.attention == "separate" and self.detached:
            raise ValueError(
                "training.triplet_prompt_gradient=detached needs the tree: set training.attention to auto, or "
                "triplet_prompt_gradient to attached"
            )
        if self.choose == "fit" and self.rationales is None:
            raise ValueError("training.choose=fit needs training.rationales, how many are kept of a question: set that")
        if self.critique and not self.feedback:
            raise ValueError("training.critique learns from lessons of kind feedback: set training.feedback=true")
        if self.schedule == "constant" and self.final_learning_rate:
            raise ValueError(
                "training.final_learning_rate is for the schedules linear and cosine: set training.schedule"
            )
        return self
