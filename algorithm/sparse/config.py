"""What to train, in the ancestor's words plus the parts that are a transformer's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from algorithm.schema import Section

Count = int | Literal["all"]
LayerType = Literal["attention", "mlp", "head"]
Ratio = float | list[float] | dict[LayerType, float]
Criteria = Literal["magnitude+", "magnitude-", "random"]


class PlanConfig(Section):
    """An update plan by rule. Counts are of blocks, from the last one downwards; "all" means every block.

    Biases and LayerNorms go with `n_bias_update`, matrices with `n_weight_update` or `manual_weight_idx`.
    """

    enable_backward_config: bool = Field(default=True, description="false: train every parameter (full update)")
    n_bias_update: Count = Field(default="all", description="biases (and LayerNorms) of the last n blocks")
    n_weight_update: Count | dict[LayerType, Count] = Field(default=0, description="matrices of the last n blocks; or "
                                                            "a count a layer type")
    manual_weight_idx: list[int] | None = Field(default=None, description="block indices, instead of n_weight_update")
    vit_layer_types: list[LayerType] = Field(default=["attention", "mlp", "head"],
                                             description="matrices of which layers; head: weight and bias, whole")
    weight_update_ratio: Ratio = Field(
        default=1.0, description="share of a matrix; or one a block; or one a layer type")
    weight_select_criteria: Criteria = "magnitude+"
    weight_select_axis: Literal["cols", "rows"] = Field(default="cols", description="cols = input features")
    bias: bool = Field(default=True, description="train the biases of those n_bias_update blocks")
    layer_norm: bool = Field(default=True, description="train their LayerNorms, and the final one")
    layer_scale: bool = Field(default=False, description="train their LayerScale vectors")
    n_gram_update: Count = Field(default=0, description="Gram A and B of the last n blocks")
    n_lora_update: Count = Field(default=0, description="LoRA A and B of the last n blocks (and of the head, when any)")
    parameters: dict[str, Any] = Field(default={}, description="explicit choices by parameter name; they win")
    seed: int = Field(default=0, description="for weight_select_criteria: random")
    name: str = ""

    @field_validator("manual_weight_idx", "weight_update_ratio", mode="before")
    @classmethod
    def _dashes(cls, value: Any) -> Any:
        """The ancestor also wrote lists as "22-23-24"."""
        if isinstance(value, str) and "-" in value.strip("-"):
            return [float(v) if "." in v else int(v) for v in value.split("-")]
        return value

    @field_validator("n_bias_update", "n_weight_update", "n_gram_update", "n_lora_update")
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
    def _lengths(self) -> PlanConfig:
        if isinstance(self.weight_update_ratio, list):
            layers = len(self.manual_weight_idx) if self.manual_weight_idx is not None else self.n_weight_update
            if isinstance(layers, int) and len(self.weight_update_ratio) != layers:
                raise ValueError(f"weight_update_ratio lists {len(self.weight_update_ratio)} values "
                                 f"for {layers} updated blocks")
        return self


class PlanChoice(Section):
    """How the update plan is found: the best that fits (auto), by a rule, or from a plan file."""

    choose: Literal["auto", "rule", "file"] = "auto"
    rule: PlanConfig = PlanConfig()
    file: str | None = None
    merit: list[dict[str, Any]] | None = Field(default=None, description="order of merit; None = the default")
    weights: dict[str, float] = Field(default={}, description="merit by tensor name or ending, instead of the order: "
                                      "the heaviest tensors that fit are trained")
    always: dict[str, Any] = Field(default={}, description="plan keys that every candidate of auto gets")
