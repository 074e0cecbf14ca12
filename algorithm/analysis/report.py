"""The report of a training by recipe: one self-contained HTML page from its work folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from algorithm.analysis import sections as s
from algorithm.analysis.files import write_whole
from algorithm.analysis.records import Records, read_records, series
from algorithm.analysis.tables import Table, figure, share
from algorithm.errors import AnalysisError
from algorithm.textfile import read_mapping

TEMPLATES = Path(__file__).resolve().parent / "templates"
TOP1 = ("Val/top1_accuracy", "Val/accuracy")
MISSING = {  # section -> what is missing, and what makes it
    "Training": ("curves of loss, accuracy, learning rate and norms", "recipe.progress_every"),
    "Classes": ("confusion matrix and accuracy of each class", "monitor.classes_freq"),
    "Gram residual": ("norms of the Gram residual T and the attention's output Z", "monitor.gram_every, in a model with "
                      "model.gram.enabled (--use-gram-lowrank-mhsa)"),
    "Activations": ("activations by block", "monitor.activations_every"),
    "Spectra": ("spectra of the weight matrices", "monitor.spec_monitor (--spec-monitor)"),
    "Distributions": ("distributions of weights, gradients and updates", "monitor.histograms_every"),
    "High-norm tokens": ("norms of the last layer's patch tokens", "monitor.analysis_freq (--analysis-freq)"),
    "What the model sees": ("attention, rollout, saliency and position embeddings", "monitor.vis_freq"),
    "Checkpoints": ("checkpoints", "recipe.checkpoint_every or recipe.save_freq"),
    "Time": ("stages and their time", "a training that came to its end writes them to summary.json"),
    "Configuration": ("configuration", "python -m algorithm train writes it to experiment.yaml"),
}


def write_training_report(folder: str | Path) -> Path:
    """Write report.html into a work folder, from its metrics.jsonl, and from pictures/, experiment.yaml, summary.json and
    checkpoints where they are there. What is absent is named with the option that makes it. Returns the report's path.

    Raises AnalysisError where there is no metrics.jsonl, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    records = read_records(folder / "metrics.jsonl")
    experiment = _mapping(folder / "experiment.yaml", "experiment")
    summary = _mapping(folder / "summary.json", "summary")
    pictures = s.pictures_of(folder)
    made = [s.curves_section(records), s.classes_section(records), s.gram_section(records), s.visuals_section(pictures),
            s.artifacts_section(records, pictures), s.other_pictures_section(pictures), s.spectra_section(records),
            s.activations_section(records), s.histograms_section(records), _time(summary), s.checkpoints_section(folder),
            _configuration(folder / "experiment.yaml"), s.figures_section(records)]
    shown = [section for section in made if section is not None]
    titles = {section.title for section in shown}
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=True,
                             trim_blocks=True, lstrip_blocks=True)
    page = env.get_template("training.html.j2").render(
        name=folder.resolve().name, lead=_lead(experiment), cards=_cards(records, summary), sections=shown,
        absent=[text for title, text in MISSING.items() if title not in titles])
    return write_whole(folder / "report.html", lambda file: file.write_text(page, encoding="utf-8"))


def _mapping(path: Path, what: str) -> dict[str, Any]:
    return read_mapping(path, what, AnalysisError, may_be_empty=True) if path.exists() else {}


def _lead(experiment: Mapping[str, Any]) -> str:
    """What was trained, in a sentence."""
    if not experiment:
        return "A training by recipe."
    model, data, recipe = (experiment.get(k, {}) for k in ("model", "data", "recipe"))
    optim, schedule = recipe.get("optim", {}), recipe.get("schedule", {})
    length = f"{schedule['total_steps']:,} updates, " if schedule.get("total_steps") else \
        f"{schedule['epochs']:,} epochs, " if schedule.get("epochs") else ""
    return (f"{model.get('name', 'a model')} at {model.get('img_size', '?')} px on {data.get('name', 'its data')}: "
            f"{optim.get('opt', 'an optimiser')}, {schedule.get('sched', 'no')} schedule, {length}"
            f"seed {recipe.get('seed', 0)}.")


def _cards(records: Records, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(title, value, what stands below), each where it is known."""
    cards = []
    accuracy = next((v for name in TOP1 if (v := series(records, name)[1])), [])
    if accuracy:
        cards.append(("Accuracy on held-out images", share(accuracy[-1]), f"best {share(max(accuracy))}"))
    average = next((v for name in TOP1 if (v := series(records, name.replace("Val/", "ValEMA/"))[1])), [])
    if average:
        cards.append(("The same of the moving average", share(average[-1]), f"best {share(max(average))}"))
    loss, held_out = series(records, "Train/loss")[1], series(records, "Val/loss")[1]
    if loss:
        cards.append(("Training loss", figure(loss[-1]), f"held out {figure(held_out[-1])}" if held_out else "last record"))
    steps = [step for found in records.values() for step, _ in found]
    if steps:
        cards.append(("Updates", f"{max(steps) + 1:,}", "recorded"))
    ratios = [values[-1] for name in records if name.endswith("/T_over_Z_norm")
              for values in [series(records, name)[1]] if values]
    if ratios:
        cards.append(("Gram residual T / Z", figure(max(ratios), 3), f"largest of {len(ratios)} blocks"))
    seconds = summary.get("seconds")
    if isinstance(seconds, (int, float)):
        cards.append(("Time", _clock(float(seconds)), "of the training"))
    return cards


def _time(summary: Mapping[str, Any]) -> s.Section | None:
    """Stages with their seconds, and the other plain values of summary.json."""
    stages = summary.get("stages")
    tables = []
    if isinstance(stages, Mapping) and stages:
        tables.append(Table("Stages", ["stage", "time"], [[str(k), _clock(float(v))] for k, v in stages.items()]))
    rest = [[k, f"{v:,}" if isinstance(v, int) else figure(v) if isinstance(v, float) else str(v)]
            for k, v in summary.items() if isinstance(v, (int, float, str))]
    if rest:
        tables.append(Table("Summary", ["", "value"], rest))
    return s.Section("Time", tables=tables) if tables else None


def _configuration(path: Path) -> s.Section | None:
    if not path.exists():
        return None
    return s.Section("Configuration", "As it was resolved; python -m algorithm train --config reads it back.",
                     text=path.read_text("utf-8"), more_title="experiment.yaml")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
