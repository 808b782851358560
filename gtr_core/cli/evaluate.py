"""``eval``: quality of methods over many images, with intervals over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..costs.bench import describe_machine
from ..costs.flops import report
from ..demo import DEMO_JUDGE, DEMO_REFERENCE
from ..device import DTYPES
from ..drawing.bars import bar_chart, check_chart, write_chart
from ..errors import GtRError
from ..evaluation import tables
from ..evaluation.evaluate import Effort, Evaluation, FeatureExtractor, Kept, Open, check_amount, evaluate
from ..evaluation.features import load_reference
from ..evaluation.fid import FidMeasures, read_statistics
from ..evaluation.files import EvaluationFiles, ExtractorFile
from ..evaluation.made import measure_folder
from ..evaluation.metrics import Interval
from ..files import check_writable
from ..jobs.generate_many import read_manifest
from ..models import ModelSpec
from ..plans.method import Method
from ..plans.presets import preset
from .options import (
    AUTO,
    DEFAULT_PRESET,
    DEMO,
    Options,
    Parser,
    Verb,
    add_fts_options,
    add_guidance_options,
    add_model_options,
    add_revision_option,
    add_runtime_options,
    add_worker_options,
    check_device,
    fts_of,
    guidance_of,
    model_file,
    named,
    names,
    pool_of,
    print_report,
    vae_file,
)
from .progress import WorkProgress

PUBLISHED = 50_000  # images behind the FID that papers print
# What cannot be asked of images that are there.
MAKING = (
    "model vae presets images seeds first_seed cfg cfg_schedule cfg_start temperature revise save_images fts "
    "fts_fraction fts_steps dtype acceleration"
).split()
DEFAULT, FIDELITY = "default", ("fid", "is")
OWN_FIGURES = "give a classifier of the model's images with --extractor and real images measured by it with --reference"


def add_options(sub: Parser) -> None:
    add_evaluation_options(sub)
    sub.add_argument(
        "--presets",
        metavar="NAME,NAME,...",
        default=f"origin,{DEFAULT_PRESET}",
        help="the others are compared with the first; also lazymar, step-N, halton-N, reference, NAME:15-3 with these "
        "AR steps per stage, NAME+recap and NAME+lazymar",
    )
    sub.add_argument("--folder", metavar="DIR", help="measure the images that generate-many made there, and make none")
    sub.add_argument("--images", metavar="N", type=int, default=300, help="per seed; classes take turns")
    sub.add_argument("--seeds", metavar="N", type=int, default=3, help="how many; intervals are over them")
    sub.add_argument("--first-seed", metavar="N", type=int, default=0, help="the others follow it")
    add_guidance_options(sub)
    sub.add_argument(
        "--metrics",
        metavar="NAMES",
        default=DEFAULT,
        help="the project's own, or fid, is or fid,is for real checkpoints. Those need torch-fidelity, which downloads "
        "Inception's weights from GitHub where --extractor names no file (default: the project's own)",
    )
    sub.add_argument("--save-images", metavar="DIR", help="keep every image as PNG")
    sub.add_argument("--figure", metavar="FILE", help="draw the first metric of every method, as .png, .svg or .pdf")
    add_fts_options(sub)
    add_revision_option(sub)


def add_evaluation_options(sub: Parser) -> None:
    """What is evaluated, by what, where intermediate results go, and who computes."""
    add_model_options(sub, "MAR")
    sub.add_argument("--batch", metavar="N", type=int, default=16, help="images at a time, per worker")
    sub.add_argument("--extractor", metavar="FILE", help="the classifier that measures (fid,is: Inception's weights)")
    sub.add_argument("--reference", metavar="FILE", help="real images, measured (fid: an .npz with mu and sigma)")
    sub.add_argument("--work", metavar="DIR", default="eval_work", help="intermediate results; a rerun goes on there")
    add_runtime_options(sub, automatic=False)
    add_worker_options(sub)


def run(options: Options) -> None:
    """Make and measure images by every preset, and report figures and differences with their intervals."""
    check_device(options.device)
    if options.figure:
        check_writable(options.figure)
        check_chart(options.figure)
    result = _of_folder(options) if options.folder else _of_presets(options)
    if "fid" in options.metrics and result["images"] < PUBLISHED:
        result["note"] = (
            f"FID of {result['images']} images is larger than that of {PUBLISHED}, the number behind published figures"
        )
    if options.figure:
        write_chart(options.figure, _draw(result))
    if options.folder:
        what = "1 set"
    elif options.seeds == 1:
        what = "1 seed"
    else:
        what = f"mean ± half of the 95 % interval over {options.seeds} seeds"
    lines = [tables.markdown(result)]
    if "floor_missing" in result:
        lines.append(f"no row of real images: {result['floor_missing']}")
    lines.append(
        f"{result['model']}, {what} of {result['images']} images"
        + ("" if options.folder else "; speed-up in FLOPs against the origin")
    )
    if "note" in result:
        lines.append(f"note: {result['note']}")
    print_report(options, result, "\n\n".join(lines))


def _of_presets(options: Options) -> dict:
    """Images by every preset, made and measured."""
    fid = None if options.metrics == DEFAULT else fid_measures(options)
    files = files_of(options, inception=fid is not None)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    check_amount(options.images, seeds)
    image_folder = Path(options.save_images).resolve() if options.save_images else None
    with WorkProgress("pieces") as progress:
        evaluation = open_evaluation(options, files, progress)
        measures = fid or measures_of(options, evaluation)
        base = Method(
            preset("origin"),
            guidance_of(options),
            fts_of(options),
            temperature=options.temperature,
            revise=options.revise,
        )
        methods = [named(name, base, evaluation.model.spec) for name in names(options.presets)]
        # Before anything is drawn: a method that does not fit the model is refused here.
        costs = {method.name: _cost(method, evaluation.model.spec) for method in methods}
        progress.doing("looking for pieces of an earlier run")
        effort = effort_of(options, progress, files.open, image_folder)
        features = evaluate(evaluation, methods, seeds, options.images, effort)
    return {
        "command": options.command,
        "model": evaluation.model.spec.name,
        "metrics": options.metrics,
        "images": options.images,
        "seeds": list(seeds),
        "interval": "95 % Student t over the seeds",
        "settings": {method.name: method.settings() for method in methods},
        "dtype": options.dtype,
        "acceleration": options.acceleration,
        "machine": describe_machine(options.device),
        "rows": tables.rows(features, seeds, measures, costs),
    } | measures.floor(seeds)


def _of_folder(options: Options) -> dict:
    """Images that are there, measured."""
    useless = [name for name in MAKING if getattr(options, name) != _default(name)]
    if useless:
        raise GtRError(f"the images in --folder are made already: leave out --{useless[0].replace('_', '-')}")
    folder = Path(options.folder).resolve()
    rows = read_manifest(folder)
    fid = None if options.metrics == DEFAULT else fid_measures(options)
    if fid is None and any(row["class"] is None for row in rows):
        raise GtRError(f"the images in {folder} were drawn from text, not from classes: use --metrics fid,is")
    file = extractor_of(options, inception=fid is not None)
    measures = fid or against_real(options, file.open("cpu"), len(rows))
    if isinstance(measures, tables.AgainstReal) and max(row["class"] for row in rows) >= measures.real.scores.shape[1]:
        raise GtRError(f"the images in {folder} are of more classes than the extractor knows: use their model's own")
    with WorkProgress("pieces") as progress:
        progress.doing(f"looking for results of the {len(rows)} images")
        made = measure_folder(folder, rows, file, effort_of(options, progress))
    return {
        "command": options.command,
        "model": folder.name,
        "metrics": options.metrics,
        "images": len(rows),
        "seeds": [0],
        "interval": "none: one set of images",
        "machine": describe_machine(options.device),
        "rows": tables.rows({", ".join(sorted({row["preset"] for row in rows})): [made]}, [0], measures, {}),
    } | measures.floor([0])


def _default(name: str) -> Any:
    """An option's value where it is not given."""
    parser = Parser()
    add_options(parser)
    return parser.get_default(name)


def files_of(options: Options, *, inception: bool = False) -> EvaluationFiles:
    """Raises GtRError when something to measure with is missing."""
    extractor = extractor_of(options, inception=inception)
    return EvaluationFiles(
        model_file(options.model).resolve(),
        vae_file(options).resolve(),
        extractor.file,
        extractor.inception,
        DTYPES[options.dtype],
        options.acceleration == AUTO,
    )


def extractor_of(options: Options, *, inception: bool) -> ExtractorFile:
    """The file of --extractor; without one the demo's classifier for the demo. Raises GtRError for any other model."""
    if options.extractor:
        return ExtractorFile(Path(options.extractor).resolve(), inception)
    if inception:
        return ExtractorFile(None, inception)
    if options.model != DEMO:
        raise _nothing(options)
    if not DEMO_JUDGE.is_file():
        raise GtRError(
            "the demo's classifier and reference are not here, as the published archive leaves them out: take "
            "gtr_core from the repository, or give --extractor and --reference"
        )
    return ExtractorFile(DEMO_JUDGE.resolve())


def open_evaluation(options: Options, files: EvaluationFiles, progress: WorkProgress) -> Evaluation:
    """On its device; where other workers compute, on the CPU: weights are then read for their identity only."""
    alone = pool_of(options).alone
    evaluation = files.open(options.device if alone else "cpu", lambda file: progress.doing(f"reading {file.name}"))
    return evaluation if alone else evaluation.for_device(options.device)


def effort_of(
    options: Options, progress: WorkProgress, opened: Open | None = None, image_folder: Path | None = None
) -> Effort:
    """How to compute, shown by ``progress``; workers other than this process have evaluations ``opened`` there."""
    pool = pool_of(options)
    return Effort(
        Kept(Path(options.work).resolve(), image_folder),
        options.batch,
        pool=pool,
        open=None if pool.alone else opened,
        on_task=progress.piece,
        on_begin=progress.begin,
        on_share=progress.within,
    )


def measures_of(options: Options, evaluation: Evaluation) -> tables.AgainstReal:
    """The project's own figures against real images."""
    return against_real(options, evaluation.extractor, options.images)


def against_real(options: Options, extractor: FeatureExtractor, images: int) -> tables.AgainstReal:
    """The project's own figures of sets of ``images``, against the reference. Raises GtRError."""
    reference = options.reference or (DEMO_REFERENCE if options.model == DEMO else None)
    if reference is None:
        raise _nothing(options)
    return tables.AgainstReal(load_reference(reference, extractor), images)


def _nothing(options: Options) -> GtRError:
    """Of the own figures, for which something is missing; ``search`` has no others."""
    others = "use --metrics fid,is, or " if "metrics" in options else ""
    return GtRError(f"nothing to judge with: {others}{OWN_FIGURES}")


def fid_measures(options: Options) -> FidMeasures:
    """FID and Inception Score."""
    wanted = tuple(name.strip() for name in options.metrics.split(","))
    if not set(wanted) <= set(FIDELITY):
        raise GtRError(f"metrics '{options.metrics}': expected default, fid, is or fid,is")
    if "fid" in wanted and not options.reference:
        raise GtRError(
            "fid needs the statistics of the real images: give an .npz with mu and sigma (such as "
            "adm_in256_stats.npz) with --reference"
        )
    return FidMeasures(read_statistics(options.reference) if "fid" in wanted else {}, wanted)


def _cost(method: Method, spec: ModelSpec) -> dict:
    facts = report(method, spec)
    return {"tflops": facts["tflops"]["total"], "speedup": facts["speedup"]}


def _draw(result: dict):
    rows = [*result["rows"], *([result["floor"]] if "floor" in result else [])]
    key = next(iter(rows[0]["figures"]))
    intervals = [Interval(**row["figures"][key]) for row in rows]
    return bar_chart(
        [(row["method"], interval.mean, str(interval)) for row, interval in zip(rows, intervals)],
        f"{result['model']}: {tables.FIGURES[key][0]}, {len(result['seeds'])} × {result['images']} images",
        [interval.half or 0.0 for interval in intervals],
    )


EVAL = Verb(
    "eval",
    "quality of methods over many images, resumable",
    (
        "eval --presets origin,gtr-paper --images 300 --seeds 3 --workers 2 --figure quality.svg",
        "eval --folder images --metrics fid,is --extractor weights-inception-2015-12-05-6726825d.pth "
        "--reference adm_in256_stats.npz",
    ),
    add_options,
    run,
    resumable=True,
)
