"""The parts of the stage `tune`: its files, and what MLflow records. `cvae study` and `cvae promote` use them too."""
