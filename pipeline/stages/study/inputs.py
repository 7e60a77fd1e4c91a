"""What a study starts from: params.yaml, the prepared data and the judge."""

from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import sha256
from pipeline.base.params import load, load_key
from pipeline.base.paths import JUDGE, PREPARED
from pipeline.measure import evaluator as evaluation
from pipeline.model.cvae import ModelParams, resolve
from pipeline.model.density import Components
from pipeline.stages.saved import load_judge, load_splits
from pipeline.study.search import Bench
from pipeline.study.space import Setting, TuneParams
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams


def read_setting() -> Setting:
    """The study of params.yaml. Raises UserError where the section `tune` is wrong or a stage has not run yet."""
    for path, stage in ((PREPARED, "prepare"), (JUDGE, "judge")):
        if not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {stage}` first")
    setting = Setting(
        tune=load(TuneParams, "tune"),
        architecture=resolve(load(ModelParams, "model")),
        aim=load(ObjectiveParams, "objective"),
        train=load(TrainParams, "train"),
        components=load_key(Components, "sample", "components"),
        nll_draws=load_key(evaluation.Draws, "evaluate", "nll_draws"),
        hashes={"data": sha256(PREPARED), "judge": sha256(JUDGE)},
    )
    setting.check()
    return setting


def read_bench(setting: Setting) -> Bench:
    """The training and validation splits and the judge, on the device of train.device."""
    device = pick_device(setting.train.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    reader = load_judge(JUDGE, device).read
    quick = train[: evaluation.QUICK_TRAIN]
    evaluator = evaluation.Evaluator(reader, validation, quick, setting.aim.pixels, setting.train.seed)
    return Bench(train, validation, evaluator, device)
