"""Steps that read tables, and on a GPU steps captured in a graph, are the plain steps."""

import pytest
import torch
from solo import CPU, VALIDATION, Treatment, on_gpu, treatment, treatments, weights

from pipeline.training import fit as fit_module
from pipeline.training import population
from pipeline.training.fit import fit, start
from pipeline.training.graph import Mode

GPU = torch.device("cuda")


def trained(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, case: Treatment, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, list[float]]:
    """The weights of a run whose steps are taken so, and its losses."""
    monkeypatch.setattr(fit_module, "mode_of", lambda *_: mode)
    run = start(case.model(0, dtype), case.params, device)
    records = list(fit(run, case.data.to(device), VALIDATION.to(device), case.params, case.aim))
    return weights(run.model), [record.figures["train/loss"] for record in records]


@treatments
def test_a_step_that_reads_tables_is_the_plain_step(monkeypatch: pytest.MonkeyPatch, case: Treatment) -> None:
    plain, losses = trained(monkeypatch, "numbers", case, CPU, torch.float64)
    from_tables, others = trained(monkeypatch, "tables", case, CPU, torch.float64)
    torch.testing.assert_close(from_tables, plain, rtol=0, atol=1e-12)
    assert others == pytest.approx(losses, rel=1e-12)


@on_gpu
@treatments
def test_a_captured_step_is_the_plain_step_bit_for_bit(monkeypatch: pytest.MonkeyPatch, case: Treatment) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # else convolutions add in any order
    plain, _ = trained(monkeypatch, "tables", case, GPU, torch.float32)
    captured, _ = trained(monkeypatch, "graph", case, GPU, torch.float32)
    assert torch.equal(captured, plain)


@pytest.mark.parametrize("mode", ["tables", pytest.param("graph", marks=on_gpu)])
def test_a_population_is_taken_further_alike_and_members_may_leave(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    on_cpu, case = mode == "tables", treatment(ema=0.9)
    device, dtype = (CPU, torch.float64) if on_cpu else (GPU, torch.float32)
    found = []
    for each in ("numbers" if on_cpu else "tables", mode):
        monkeypatch.setattr(fit_module, "mode_of", lambda *_, each=each: each)
        models = [case.model(seed, dtype) for seed in range(3)]
        members = population.start(models, [0.1, 1.0, 10.0], case.params, device, [1e-3, 2e-3, 3e-3])
        splits = case.data.to(device), VALIDATION.to(device)
        for records in population.fit(members, *splits, case.params, case.aim):
            members.drop([1] if next(iter(records.values())).epoch == 1 else [])  # nobody leaves, in new tensors
        found.append(torch.cat([weights(members.model(member)) for member in members.members]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12 if on_cpu else 0)
