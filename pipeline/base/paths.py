"""Every path of the project, relative to its folder. No other module spells one."""

from pathlib import Path

CHECKED = Path("reports/params.txt")  # says that every value of params.yaml is allowed
RAW = Path("data/raw")
PREPARED = Path("data/prepared/mnist.safetensors")

JUDGE = Path("models/judge.safetensors")
MODEL = Path("models/cvae.safetensors")
RUN = Path("models/run.json")
SMALL = Path("docs/results/small/cvae.safetensors")  # in git: what `cvae sample` uses before any training
PUBLISHED = Path("docs/results/study")  # in git: the study that the pages quote
COMPLETER = Path("models/completer.safetensors")
NETWORK = Path("models/completion_network.safetensors")
COMPLETION_RUN = Path("models/completion_run.json")

JUDGE_REPORT = Path("reports/judge.json")
HISTORY = Path("reports/history.csv")
VALIDATION = Path("reports/validation.json")  # the figures that models are compared by
METRICS = Path("reports/metrics.json")  # the same on test
HEADLINE = Path("reports/headline.json")  # ten of validation's figures, which DVC compares
PER_CLASS = Path("reports/per_class.csv")
DOCTOR = Path("reports/doctor.json")
FIGURES = Path("reports/figures")

TRIALS = Path("reports/study/trials.csv")
SEEDS = Path("reports/study/seeds.csv")
BEST = Path("reports/study/best.json")
STUDY_FIGURES = Path("reports/study/figures")
STUDY_SHEETS = Path("reports/study/sheets")  # of each trial: digits from both samplers

SPECTRUM = Path("reports/weight/spectrum.json")
CURVE = Path("models/curve.safetensors")
CURVE_TABLE = Path("reports/weight/curve.csv")
CURVE_FIGURE = Path("reports/weight/curve.png")
SPECTRUM_FIGURE = Path("reports/weight/spectrum.png")
EXPLORE = Path("reports/explore.html")

ARTICLE = Path("reports/article")

COMPLETION_HISTORY = Path("reports/completion_history.csv")
COMPLETION = Path("reports/completion.json")
COMPLETIONS_FIGURE = Path("reports/completions.png")

# Not outputs of DVC, which deletes a stage's outputs before it runs.
CHECKPOINTS = Path(".checkpoints")  # unfinished trainings
WORKERS = Path(".workers")  # a lock file for each living process of a study
