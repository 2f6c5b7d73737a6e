"""Where each line goes: the run's log file, stderr, or both. Run in processes of their own, for logging is global."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tailor_ray.observe.logs import WorkerLines


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_chatter_goes_to_the_file_and_warnings_to_both(tmp_path: Path):
    log = tmp_path / "logs" / "run.log"
    done = run(
        """
        import logging, sys, pathlib, warnings
        noisy = logging.getLogger("ray.data")
        noisy.addHandler(logging.StreamHandler()); noisy.propagate = False
        from tailor_ray.observe.logs import setup_logging
        setup_logging(pathlib.Path(sys.argv[1])); setup_logging(pathlib.Path(sys.argv[1]))
        logging.getLogger("tailor_ray.x").info("quiet fact")
        noisy.setLevel("DEBUG"); noisy.debug("detail"); noisy.info("chatter"); noisy.warning("worth knowing")
        warnings.warn("old thing")
        """,
        str(log),
    )
    text = log.read_text()
    assert done.stdout == ""
    assert "quiet fact" not in done.stderr
    assert "chatter" not in done.stderr
    assert done.stderr.count("WARNING worth knowing") == 1
    assert "old thing" in done.stderr
    assert "detail" not in text
    assert text.count("quiet fact") == text.count("chatter") == text.count("worth knowing") == 1


def test_secrets_are_masked_in_messages_and_tracebacks(tmp_path: Path):
    log = tmp_path / "run.log"
    done = run(
        """
        import logging, sys, pathlib
        from tailor_ray.observe.logs import setup_logging
        setup_logging(pathlib.Path(sys.argv[1]), secrets=["", "sk-canary-1"])
        logging.getLogger("openai").warning("key %s refused", "sk-canary-1")
        try:
            raise ValueError("header Bearer sk-canary-1")
        except ValueError:
            logging.getLogger("x").exception("failed")
        """,
        str(log),
    )
    for text in (done.stderr, log.read_text()):
        assert "sk-canary-1" not in text
        assert "key *** refused" in text
        assert "Bearer ***" in text


def test_a_full_disk_is_said_once():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = run(
        """
        import logging, pathlib
        from tailor_ray.observe.logs import setup_logging
        setup_logging(pathlib.Path("/dev/full"))
        for _ in range(3):
            logging.getLogger("tailor_ray").info("a line")
        """
    )
    assert done.stderr.count("/dev/full cannot be written") == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_workers_print_goes_to_the_file_instead_of_the_terminal(tmp_path: Path):
    log = tmp_path / "run.log"
    done = run(
        """
        import pathlib, sys
        from tailor_ray.observe.logs import adopt_ray_output, setup_logging
        setup_logging(pathlib.Path(sys.argv[1]))
        adopt_ray_output(); adopt_ray_output()
        import ray.data
        assert not ray.data.DataContext.get_current().enable_progress_bars
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher
        lines = ["INFO vllm: engine ready", "ERROR vllm: engine died"]
        dispatcher.emit({"pid": 7, "ip": "127.0.0.1", "lines": lines, "is_err": False, "actor_name": "Engine"})
        """,
        str(log),
    )
    assert done.stdout == ""
    assert "engine ready" not in done.stderr
    assert done.stderr.count("(Engine pid=7) ERROR vllm: engine died") == 1
    assert log.read_text().count("(Engine pid=7) INFO vllm: engine ready") == 1


def test_worker_lines_keep_their_level_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    route = WorkerLines()
    lines = [
        "INFO 11-22 19:00:01 [llm.py:1] loaded",
        "WARNING 11-22 19:00:01 [x.py:2] slow path 1",
        "WARNING 11-22 19:00:09 [x.py:2] slow path 2",
        "ValueError: bad weights",
        '__ray_tqdm_magic_token__{"x": 1}',
        ":actor_name:Engine",
        "",
    ]
    route({"pid": 7, "lines": lines, "actor_name": "Engine"})
    got = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in got] == ["INFO", "WARNING", "INFO", "ERROR"]
    assert got[1][1] == "(Engine pid=7) WARNING 11-22 19:00:01 [x.py:2] slow path 1"


def test_our_handlers_survive_an_import_that_puts_others_in_their_place(tmp_path: Path):
    log = tmp_path / "run.log"
    done = run(
        """
        import logging, sys
        from pathlib import Path
        from tailor_ray.observe.logs import own_handlers, setup_logging
        setup_logging(Path(sys.argv[1]))
        with own_handlers():
            logging.getLogger().handlers = [logging.StreamHandler(sys.stdout)]
            logging.getLogger().setLevel(logging.CRITICAL)
        logging.getLogger("x").info("still here")
        """,
        str(log),
    )
    assert "still here" in log.read_text()
    assert done.stdout == ""
