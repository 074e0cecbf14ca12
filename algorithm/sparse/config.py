"""What to train, in the ancestor's words plus the parts that are a transformer's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from algorithm.schema import SEED_MAX, Section

Count = int | Literal["all"]
LayerType = Literal["attention", "mlp", "head"]
Ratio = float | list[float] | dict[LayerType, float]
Criteria = Literal["magnitude+", "magnitude-", "random"]


class PlanConfig(Section):
    """An update plan by rule. Counts are of blocks, from the last one downwards; "all" means every block.

    Biases and LayerNorms go with `n_bias_update`, matrices with `n_weight_update` or `manual_weight_idx`.

    With `count: layers` these three count matrix layers instead, as the ancestor of this project does: those that
    `vit_layer_types` names, in the model's order (in each block the attention's qkv and proj, then the MLP's fc1 and fc2; at
    the end the head, which is then a layer like the others: sliced, and its bias counted).
    """

    enable_backward_config: bool = Field(default=True, description="false: train every parameter (full update)")
    count: Literal["blocks", "layers"] = Field(default="blocks", description="what n_bias_update, n_weight_update and "
                                               "manual_weight_idx count: blocks, or matrix layers of vit_layer_types")
    n_bias_update: Count = Field(default="all", description="biases (and LayerNorms) of the last n blocks, or biases of the "
                                 "last n layers")
    n_weight_update: Count | dict[LayerType, Count] = Field(default=0, description="matrices of the last n blocks or "
                                                            "layers; or a count of blocks a layer type")
    manual_weight_idx: list[int] | None = Field(default=None, description="indices of blocks or layers, from the first one "
                                                "(0), instead of n_weight_update")
    vit_layer_types: list[LayerType] = Field(default=["attention", "mlp", "head"],
                                             description="matrices of which layers; head, where blocks are counted: weight "
                                             "and bias, whole")
    weight_update_ratio: Ratio = Field(default=1.0, description="share of a matrix; or one a block or layer that is "
                                       "updated, in their order; or one a layer type")
    weight_select_criteria: Criteria = Field(default="magnitude+", description="which columns or rows: of the largest "
                                             "norm, the smallest, or by seed")
    weight_select_axis: Literal["cols", "rows"] = Field(default="cols", description="cols = input features")
    bias: bool = Field(default=True, description="train the biases of those n_bias_update blocks")
    layer_norm: bool = Field(default=True, description="train their LayerNorms, and the final one")
    layer_scale: bool = Field(default=False, description="train their LayerScale vectors")
    n_gram_update: Count = Field(default=0, description="Gram A and B of the last n blocks")
    gram_rank: int | None = Field(default=None, ge=1, description="rank at which they are trained, at most the model's; "
                                  "null = the model's")
    n_lora_update: Count = Field(default=0, description="LoRA A and B of the last n blocks (and of the head, when any)")
    n_gate_update: Count = Field(default=0, description="output gates of the last n blocks (of model.variant gated)")
    parameters: dict[str, Any] = Field(default={}, description="explicit choices by parameter name; they win")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="for weight_select_criteria: random")
    name: str = Field(default="", description="for people; empty = made from the rule")

    @field_validator("manual_weight_idx", "weight_update_ratio", mode="before")
    @classmethod
    def _dashes(cls, value: Any) -> Any:
        """The ancestor also wrote lists as "22-23-24"."""
        if isinstance(value, str) and "-" in value.strip("-"):
            return [float(v) if "." in v else int(v) for v in value.split("-")]
        return value

    @field_validator("n_bias_update", "n_weight_update", "n_gram_update", "n_lora_update", "n_gate_update")
    @classmethod
    def _count(cls, value: Count | dict[LayerType, Count]) -> Count | dict[LayerType, Count]:
        if any(isinstance(v, int) and v < 0 for v in (value.values() if isinstance(value, dict) else [value])):
            raise ValueError("must be 0 or more, or all")
        return value

    @field_validator("weight_update_ratio")
    @classmethod
    def _ratio(cls, value: Ratio) -> Ratio:
        values = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
        if not values or any(not 0.0 <= v <= 1.0 for v in values):
            raise ValueError("each ratio must be within 0 and 1")
        return value

    @model_validator(mode="after")
    def _used(self) -> PlanConfig:
        if self.gram_rank is not None and not self.n_gram_update:
            raise ValueError("gram_rank has no effect without n_gram_update: set that, or leave gram_rank out")
        others = [n for n in type(self).model_fields if n not in ("enable_backward_config", "parameters", "name", "seed")]
        if not self.enable_backward_config and (vain := self.changed(*others)):
            raise ValueError(f"enable_backward_config=false trains everything, so {vain[0]} has no effect: leave one out")
        blocks = self.manual_weight_idx
        if blocks is not None and len(set(blocks)) != len(blocks):
            raise ValueError(f"manual_weight_idx names a {self.count[:-1]} twice")
        if blocks is not None and self.n_weight_update not in (0, len(blocks)):
            raise ValueError("manual_weight_idx takes the place of n_weight_update: give one of them")
        layers = self.count == "layers"
        for key in ("n_weight_update", "weight_update_ratio"):
            value = getattr(self, key)
            known = [t for t in self.vit_layer_types if layers or t != "head"]
            unused = [t for t in value if t not in known] if isinstance(value, dict) else []
            if unused:
                raise ValueError(f"{key} of {unused[0]!r} has no effect: " + (
                    "vit_layer_types does not name it" if layers else
                    "it is for attention and mlp, where vit_layer_types has them (the head is trained whole)"))
        if layers and (self.layer_norm or self.layer_scale):
            raise ValueError("count: layers counts matrices and their biases, and no LayerNorm or LayerScale: set "
                             "layer_norm: false (and layer_scale: false), or count: blocks")
        if layers and isinstance(self.n_weight_update, dict):
            raise ValueError("n_weight_update a layer type is for count: blocks; with count: layers one count goes over all "
                             "layers that vit_layer_types names")
        return self

    @model_validator(mode="after")
    def _lengths(self) -> PlanConfig:
        if isinstance(self.weight_update_ratio, list):
            layers = len(self.manual_weight_idx) if self.manual_weight_idx is not None else self.n_weight_update
            if isinstance(layers, int) and len(self.weight_update_ratio) != layers:
                raise ValueError(f"weight_update_ratio lists {len(self.weight_update_ratio)} values "
                                 f"for {layers} updated {self.count}")
        return self


class PlanChoice(Section):
    """How the update plan is found: the best that fits (auto), by a rule, or from a plan file.

    A later layer of the configuration that chooses otherwise drops what an earlier one gave for its own choice.
    """

    choose: Literal["auto", "rule", "file"] = Field(
        default="auto", description="auto: the best of the order of merit that fits; naming a file or a rule chooses it")
    nearest: bool = Field(default=False, description="where the plan of a rule or file does not fit the budget, take the "
                          "nearest that does (false: refuse, and name it)")
    rule: PlanConfig = PlanConfig()
    file: str | None = Field(default=None, description="an update plan (YAML or JSON), when choose is file")
    merit: list[dict[str, Any]] | None = Field(default=None, description="order of merit for auto; null = bias+LN deeper "
                                               "first, then attention columns, then the MLP (recipes/merit_default.yaml)")
    weights: dict[str, float] = Field(default={}, description="merit by tensor name or ending, e.g. {head.weight: 2}, "
                                      "instead of the order: the heaviest tensors that fit are trained")
    always: dict[str, Any] = Field(default={}, description="rule keys that every candidate of the order of merit gets, "
                                   "e.g. {n_gram_update: all}")

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, value: dict[str, float]) -> dict[str, float]:
        if any(v < 0 for v in value.values()):
            raise ValueError("a weight must be 0 or more")
        return value

    @model_validator(mode="after")
    def _used(self) -> PlanChoice:
        if self.choose == "auto" and self.nearest:
            raise ValueError("plan.nearest is for a plan that is given (plan.rule, plan.file), and plan.choose=auto takes "
                             "the best that fits anyway: leave it out (--nearest)")
        vain = self.changed(*unread(self.choose))
        if vain:
            owner = next(c for c, names in CHOICES.items() if vain[0] in names)
            raise ValueError(f"plan.{vain[0]} is given, but plan.choose is {self.choose}: set plan.choose={owner}, or leave "
                             f"plan.{vain[0]} out")
        if self.weights and (both := self.changed("merit", "always")):
            raise ValueError(f"plan.weights takes the place of plan.{both[0]}: give one of them")
        return self


CHOICES = {"file": ("file", "nearest"), "rule": ("rule", "nearest"),
           "auto": ("merit", "weights", "always")}  # what each choice reads


def unread(choose: str) -> list[str]:
    """The keys of `plan` that a choice does not read."""
    return [n for names in CHOICES.values() for n in names if n not in CHOICES[choose]]
