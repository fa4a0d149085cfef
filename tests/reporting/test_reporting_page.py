"""The report: tables, the documentation between its markers, plots."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reporting_helpers import along_threads, race, series, write
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.errors import DataError
from emc_fast.reporting import OURS, insert, page, read_run, summary
from emc_fast.reporting.page import BEGIN, END, amount, ratio, time
from emc_fast.reporting.plots import plot_growth, plot_ratios, plot_threads, save_plots

ROOT = Path(__file__).resolve().parents[2]


def test_words() -> None:
    assert [time(t) for t in (2.5, 0.0125, 3.2e-6)] == ["2.5 s", "12.5 ms", "3.2 µs"]
    assert [ratio(r) for r in (0.5, 12.34, 345.6)] == ["0.50x", "12.3x", "346x"]
    assert [amount(b) for b in (2048, 5 * 2**20, 3 * 2**30)] == ["2 KiB", "5.0 MiB", "3.00 GiB"]


def test_page(tmp_path: Path) -> None:
    limited = race(work={"bytes": 1e6}, limits={"copy": 5e-4}, peak_bytes={OURS: 2**20, "eager": 2**30, "sdpa": 2**21})
    failed = race(size="9 x 9", unmeasured={"compile(eager)": "did not finish"}, seconds={OURS: 1.0, "eager": 3.0})
    text = page([read_run(write(tmp_path / "run.json", limited, failed))])
    row = next(line for line in text.splitlines() if line.startswith("| 4 x 8"))
    assert row == ("| 4 x 8 | forward | 1 | 1 ms | 4.00x | **2.00x** | 1 GB/s, 50% of copy | 1.0 MiB (sdpa 2.0 MiB, eager 1.00 GiB) |")
    assert "Not measured: compile(eager) at 9 x 9 forward: did not finish." in text
    assert "### Test(R) Processor, 2 cores" in text
    assert "copy, 1 thread 12 GB/s, torch.exp, 1 thread 1 Gexp/s" in text
    columns = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert columns == [8] * 3 + [9] * 4  # the summary, then every race


def test_summary_takes_the_geometric_mean(tmp_path: Path) -> None:
    races = [race(size=str(n), seconds={OURS: 1.0, "eager": n}) for n in (1.0, 4.0)]
    text = summary([read_run(write(tmp_path / "run.json", *races))], "docs/performance.md", lambda run: [(run.slug, "plot.png")])
    assert "| op | forward | 1 | 2 | **2.00x** | 1.00x to 4.00x | eager |\n\n![test-processor-2-cores](plot.png)\n\nAll sizes" in text


def test_insert_keeps_everything_else(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert insert(file, "new\n")
    assert file.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert not insert(file, "new\n")


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_insert_wants_both_markers(tmp_path: Path, text: str) -> None:
    file = tmp_path / "page.md"
    file.write_text(text)
    with pytest.raises(DataError, match=r"page\.md.*bench: begin"):
        insert(file, "new\n")
    assert file.read_text() == text


def test_the_documentation_has_the_markers() -> None:
    for name in ("README.md", "docs/performance.md"):
        text = (ROOT / name).read_text()
        assert text.count(BEGIN) == text.count(END) == 1


def test_update_writes_pages_and_plots_that_they_link_to(tmp_path: Path) -> None:
    results = write(tmp_path / "bench" / "results" / "x" / "1-thread.json", race(), *series(memory=True))
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(f"# Title\n{BEGIN}\n{END}\nend\n")
    arguments = ["bench", "report", "--update", "--root", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "docs" / "performance.md").read_text()
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert [Path(link).name for link in links] == [f"bench-test-processor-2-cores-{name}.png" for name in ("ratios", "growth", "memory")]
    for link in links:
        assert (tmp_path / "docs" / link).stat().st_size < 150_000
    assert "(docs/performance.md)" in (tmp_path / "README.md").read_text()
    assert text.endswith(f"{END}\nend\n")
    again = CliRunner().invoke(app, [*arguments, str(results)])
    assert again.output.count("is up to date") == 2


def test_report_prints_every_race(tmp_path: Path) -> None:
    run = write(tmp_path / "run.json", race(), race("other", threads=2))
    result = CliRunner().invoke(app, ["bench", "report", str(run)])
    assert result.exit_code == 0, result.output
    assert "op" in result.output
    assert "other" in result.output
    assert "2.00x" in result.output


def test_report_of_a_damaged_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"benchmarks": [')
    command = [sys.executable, "-m", "emc_fast", "bench", "report", str(tmp_path / "cut.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "cut.json: is not JSON, or was cut off" in done.stderr
    assert "Traceback" not in done.stderr


def test_ratios_are_bars_by_operator(tmp_path: Path) -> None:
    figure = plot_ratios(read_run(write(tmp_path / "run.json", race(), race("other"), race("other", direction="forward+backward"))))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["op", "other"]
    assert [len(axes.patches) for axes in figure.axes] == [1, 2]


def test_measures_have_a_figure_of_their_own(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run.json", race(), race("FRDist", direction="measure")))
    titles = [[axes.get_title(loc="left") for axes in plot_ratios(run, measures=measures).axes] for measures in (False, True)]
    assert titles == [["op"], ["FRDist"]]
    assert [path.name.rpartition("-")[2] for _, path in save_plots(run, tmp_path)] == ["ratios.png", "measures.png"]


def test_growth_is_log_log_with_a_line_per_contestant(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run.json", *series(), *along_threads(1, 2)))
    figure = plot_growth(run)
    assert figure is not None
    (first,) = figure.axes  # threads have a figure of their own
    assert (first.get_xscale(), first.get_yscale()) == ("log", "log")
    assert {line.get_label() for line in first.lines} == {OURS, "eager"}
    assert list(first.lines[1].get_ydata()) == pytest.approx([t * t * 1e-3 for t in (8, 64, 512)], rel=1e-4)
    assert plot_growth(run, memory=True) is None


def test_threads_do_not_mix_in_a_series(tmp_path: Path) -> None:
    twice = [race(size=one.size, threads=n, seconds=one.seconds, shape=one.shape, series="T") for n in (1, 2) for one in series()]
    figure = plot_growth(read_run(write(tmp_path / "run.json", *twice)))
    assert figure is not None
    assert [len(axes.lines[0].get_xdata()) for axes in figure.axes] == [3, 3]
    assert [axes.get_title().split(", ")[-1] for axes in figure.axes] == ["1 thread", "2 threads"]


def test_threads_are_a_table_and_bars_of_what_they_gain(tmp_path: Path) -> None:
    races = [*along_threads(2, 1), race("other")]
    run = read_run(write(tmp_path / "run.json", *races))
    text = page([run])
    row = next(line for line in text.splitlines() if "1 to 2" in line)
    cells = "| op | 4 x 8 | forward | 1 to 2 | 1 ms to 500 µs | **2.00x** | eager 1.00x | 1.00x (copy) | 4.00x eager to 8.00x eager |"
    assert row == cells
    assert "2 hardware threads to a core (by its own account)" in text
    figure = plot_threads(run)
    assert figure is not None
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2, 1, 1])
    assert [path.name.rpartition("-")[2] for _, path in save_plots(run, tmp_path)] == ["ratios.png", "threads.png"]
    result = CliRunner().invoke(app, ["bench", "report", str(tmp_path / "run.json")])
    assert "along threads" in result.output
    assert plot_threads(read_run(write(tmp_path / "lone.json", *along_threads(1)))) is None


def test_a_machine_that_does_not_say_what_shares_a_core(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run.json", *along_threads(1, 2), threads_per_core=None))
    assert "What shares a core on this machine is not known" in page([run])
    run = read_run(write(tmp_path / "run.json", *along_threads(1, 2), threads_per_core=1, virtual=True))
    assert "1 hardware thread to a core (it is virtual, and its hypervisor says so)" in page([run])


def test_what_was_not_measured_is_said_once_for_all_sizes(tmp_path: Path) -> None:
    missing = {"tslearn": "tslearn is not installed"}
    run = write(tmp_path / "run.json", race(unmeasured=missing), race(size="9 x 9", seconds={OURS: 1.0}, unmeasured=missing))
    sentence = "Not measured: tslearn at 4 x 8 forward, 9 x 9 forward: tslearn is not installed."
    assert page([read_run(run)]).count(sentence) == 1
    result = CliRunner().invoke(app, ["bench", "report", str(run)])
    assert sentence in result.output


def test_a_run_without_series_has_no_growth(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run.json", race()))
    assert plot_growth(run) is None
    assert [path.name for _, path in save_plots(run, tmp_path)] == ["bench-test-processor-2-cores-ratios.png"]


def test_a_full_disk_names_the_plot_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    from emc_fast.metrics.plots import save_figure

    def full(self: object, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure_module.Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*plot\.png'"):
        save_figure(tmp_path / "plot.png", figure_module.Figure())
    assert not list(tmp_path.iterdir())


def test_races_of_a_gpu_are_of_their_device(tmp_path: Path) -> None:
    """Under its name, with what it has; our other back end beside ours and among no rivals."""
    gpu = {"name": "NVIDIA Test", "capability": 90, "multiprocessors": 132, "memory_gib": 79.2, "cuda": "13.0", "triton": "3.6.0"}
    one = race(seconds={OURS: 1e-3, "sdpa": 1.5e-3}, others={"triton": 9e-4})
    one.backend, one.dtype = "cuda", "bfloat16"
    run = read_run(write(tmp_path / "races.json", one, gpu=gpu))
    assert run.slug == "nvidia-test"
    assert run.races == [one]
    assert run.races[0].best_rival == "sdpa"
    text = page([run])
    assert "### NVIDIA Test\n" in text
    assert "NVIDIA Test, capability 9.0, 132 multiprocessors, 79.2 GiB" in text
    assert "CUDA 13.0, Triton 3.6.0" in text
    assert "| 1 ms (cuda; triton 900 µs) | **1.50x** |" in text
    assert "instruction set" not in text


def test_no_races_of_a_gpu_without_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    found = CliRunner().invoke(app, ["bench", "run", "--gpu"])
    assert found.exit_code != 0
    assert "no CUDA device" in f"{found.output}{found.exception}"
