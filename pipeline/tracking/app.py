"""MLflow's server as `cvae ui` starts it: its page opens for model training, with the assistant closed.

The page reads both from the browser's storage alone, which only a page from this server can write. A fresh browser
would show the view for language models wherever the address names none, as on a run's page, and would open the
assistant over the columns. What a person chose there stays.
"""

import json
from pathlib import Path

import mlflow.server
from mlflow.server.fastapi_app import app

__all__ = ["app"]  # with the page below
CHOSEN = {
    "mlflow.workflowType_v1": json.dumps("machine_learning"),
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": json.dumps(True),
}
# In a description, a wide picture would push the rest of the page aside.
HEAD = f"""<head>
<script>for (const [key, value] of Object.entries({json.dumps(CHOSEN)})) localStorage[key] ??= value</script>
<style>img[src^="get-artifact?"] {{ max-width: 100% }}</style>"""


def _index() -> str:
    page = Path(str(mlflow.server.app.static_folder), "index.html").read_text(encoding="utf-8")
    return page.replace("<head>", HEAD, 1)


mlflow.server.app.view_functions["serve"] = _index
