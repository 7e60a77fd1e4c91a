"""The parts of the stage `tune`: what it reads and writes, and what MLflow records. `cvae study` uses them too."""
