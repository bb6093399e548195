"""The sensitivity runner behind `scripts/qwen/qwen3_lm_sensitivity.py`. The only module that knows Hydra.

Hydra composes the configuration and starts the jobs; here each composed configuration becomes a plain mapping, then a checked
spec, then one call of `api.sensitivity`.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fewbits.core.codec import storable
from fewbits.core.errors import ExitCode, FewbitsError, PrerequisiteError, SpecError
from fewbits.records.sensitivity import SensitivitySpec
from fewbits.spec.sensitivity import known_keys, load_sensitivity_spec, wants_report_only
from fewbits.spec.sensitivity_layout import manifest_name, publish_folder, scheme_name
from fewbits.spec.values import nearest
from fewbits.store.multirun_jobs import JobLedger, JobRecord, JobStatus

CONFIG_NAME = "qwen3_lm_sensitivity"
_PROGRAM = "qwen3_lm_sensitivity"
_LEDGERS = Path("tmp") / "model-experiments" / "multirun-jobs"
_LAUNCHERS = "hydra/launcher"
_GROUPS = ("model", "dataset", "quant_pair", "quant_granularity", "autoquant", "output_layout", "preset", _LAUNCHERS)
_COULD_NOT_OVERRIDE = re.compile(r"Could not (?:override|append to|delete|load) '(?P<key>[^']+)'")


def main(conf: Path) -> int:
    """Run what the command line asks for, with the configuration tree at `conf`; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(conf)
    except FewbitsError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted. The run's manifest says FAILED; run the same command again.", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _run(conf: Path) -> int:
    _require_hydra(conf)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Hydra would print its errors and exit with 1: this makes it raise them, so that they get our form and exit code
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    app = SensitivityApp(_new_ledger())
    entry = hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=CONFIG_NAME)(app)
    failure: BaseException | None = None
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error) from error
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again below, after the jobs' results are said
        failure = error
    jobs = app.ledger.read()
    if failure is not None and not (jobs and isinstance(failure, Exception)):
        _print_jobs(jobs, app.ledger)
        raise failure
    if app.error is not None:
        raise app.error
    if failure is not None:
        print(f"{_PROGRAM}: the launcher failed: {type(failure).__name__}: {failure}", file=sys.stderr)
    _print_jobs(jobs, app.ledger)
    return max(_exit_code(jobs), ExitCode.UNEXPECTED if failure is not None else ExitCode.OK)


def _require_hydra(conf: Path) -> None:
    missing = [name for name in ("hydra", "omegaconf") if importlib.util.find_spec(name) is None]
    if missing:
        raise PrerequisiteError(f"{' and '.join(missing)} not installed", "Install with: pip install 'fewbits[sensitivity]'")
    if not (conf / f"{CONFIG_NAME}.yaml").is_file():
        raise PrerequisiteError(f"{conf} holds no {CONFIG_NAME}.yaml", "Run the script from a checkout: its conf/ is part of it.")
    if any(word.startswith("--experimental-rerun") for word in sys.argv[1:]):
        hint = "give the overrides of .hydra/overrides.yaml instead"
        raise SpecError.single("--experimental-rerun", "reads a pickle, which could run any code", hint)


def _new_ledger() -> JobLedger:
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return JobLedger((_LEDGERS / f"{now}-{os.getpid()}").absolute())


@dataclass
class SensitivityApp:
    """The task that Hydra calls, once per job, maybe in other processes: it is pickled with them."""

    ledger: JobLedger
    error: FewbitsError | None = field(default=None, init=False)
    """What a single run failed with. Raised after Hydra is done: on the way Hydra would add lines of its own."""

    def __call__(self, config: Any) -> None:
        """Run one composed configuration (an OmegaConf mapping)."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra_config = HydraConfig.get()
        job = _Job(
            number=hydra_config.job.get("num", 0),
            overrides=tuple(str(item) for item in hydra_config.overrides.task),
            run_directory=_shortened(Path(hydra_config.runtime.output_dir)),
            chdir=bool(hydra_config.job.chdir),
        )
        if hydra_config.mode is RunMode.MULTIRUN:
            self._run_recorded(config, job)
            return
        try:
            _run_job(config, job, lambda _directory: None, _progress)
        except FewbitsError as error:
            self.error = error

    def _run_recorded(self, config: Any, job: _Job) -> None:
        """Run one job of several: its failure is recorded and never ends the others."""
        record = JobRecord(number=job.number, overrides=job.overrides, status=JobStatus.RUNNING)
        self.ledger.write(record)
        target: list[Path] = []

        def claim(directory: Path) -> None:
            target.append(directory)
            self.ledger.claim(directory, record)

        try:
            _run_job(config, job, claim, lambda line: _progress(f"[job {job.number}] {line}"))
        except FewbitsError as error:
            status, message, code = JobStatus.FAILED, str(error), error.exit_code
        except Exception as error:  # noqa: BLE001 - whatever one job dies of, the others go on
            traceback.print_exc()
            reason = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
            status, message, code = JobStatus.FAILED, reason, ExitCode.UNEXPECTED
        else:
            status, message, code = JobStatus.OK, "", ExitCode.OK
        directory = storable(str(target[0])) if target else None
        ended = msgspec.structs.replace(
            record, status=status, directory=directory, message=storable(message), exit_code=int(code)
        )
        self.ledger.write(ended)


@dataclass(frozen=True, slots=True)
class _Job:
    """What Hydra says about a job."""

    number: int
    overrides: tuple[str, ...]
    run_directory: Path
    chdir: bool


def _run_job(config: Any, job: _Job, claim: Callable[[Path], None], progress: Callable[[str], None]) -> None:
    """Check one configuration and run it; `claim` is called with its folder before anything heavy. Raises as the API does."""
    from omegaconf import OmegaConf

    from fewbits.api.sensitivity import regenerate_reports, run_sensitivity

    if job.chdir:
        hint = "leave it false: paths are relative to where the command was started"
        raise SpecError.single("hydra.job.chdir", "would move relative paths", hint)
    plain = _plain(config)
    spec = load_sensitivity_spec(plain, root=Path())
    directory = _directory(spec, job.run_directory)
    claim(directory)
    if wants_report_only(plain):
        for path in regenerate_reports(directory, _scheme_to_report(spec, directory, job.overrides)):
            print(path)
        return
    if spec.quant_pair.experimental:
        progress(f"{spec.quant_pair.name} is experimental: no known engine runs {spec.quant_pair.format_name}")
    run_sensitivity(spec, directory, OmegaConf.to_yaml(config, resolve=True), progress)
    print(f"results: {directory}")


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise _explained(error) from error
    return {str(key): value for key, value in plain.items()}


def _directory(spec: SensitivitySpec, run_directory: Path) -> Path:
    layout = spec.output_layout
    if layout.output_dir is not None:
        return Path(layout.output_dir)
    return Path(layout.root_dir) / publish_folder(spec) if layout.mode == "publish" else run_directory


def _scheme_to_report(spec: SensitivitySpec, directory: Path, overrides: Sequence[str]) -> str | None:
    """The scheme whose reports are wanted: a pair that was asked for, or the default's where it is there, else the only one."""
    scheme = scheme_name(spec)
    asked = any(item.lstrip("+").startswith("quant_pair") for item in overrides)
    return scheme if asked or (directory / manifest_name(scheme)).is_file() else None


def _shortened(path: Path) -> Path:
    """Return a path relative to the working directory, where it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- what is said at the end


def _print_jobs(jobs: Sequence[JobRecord], ledger: JobLedger) -> None:
    """Say how each job ended, and how to put their results into one table."""
    if not jobs:
        return
    for job in jobs:
        what = " ".join(job.overrides) or "(no overrides)"
        print(f"job {job.number}: {'OK' if job.status is JobStatus.OK else 'FAILED'}  {what}  {job.directory or ''}".rstrip())
        if job.status is not JobStatus.OK:
            message = job.message or "ended without a result: it was killed, by the system when memory ran out or by somebody"
            print("\n".join(f"    {line}" for line in message.splitlines()))
    good = [job.directory for job in jobs if job.status is JobStatus.OK and job.directory]
    print(f"{len(good)} of {len(jobs)} jobs ended well; their records: {_shortened(ledger.root)}")
    if good:
        print(f"one table of them: fewbits sensitivity rollup {shlex.quote(os.path.commonpath(good))}")


def _exit_code(jobs: Sequence[JobRecord]) -> ExitCode:
    """The failed jobs' exit code where they agree, 1 where they do not."""
    codes = {ExitCode(job.exit_code or ExitCode.UNEXPECTED) for job in jobs if job.status is not JobStatus.OK}
    if not codes:
        return ExitCode.OK
    return codes.pop() if len(codes) == 1 else ExitCode.UNEXPECTED


def _explained(error: Exception) -> SpecError:
    """Turn an error of Hydra's into ours: where, what, and the nearest thing that would have worked."""
    missing = getattr(error, "missing_cfg_file", None)
    if missing is not None and getattr(error, "options", None):
        group, _, option = str(missing).rpartition("/")
        return SpecError.single(group, f"there is no option {option!r}", _options_hint(group, option, error.options))  # type: ignore[attr-defined]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = _COULD_NOT_OVERRIDE.search(str(error))
    if found is not None:
        key = found["key"].partition("@")[0]
        return SpecError.single(key, "unknown key", nearest(key, (*_GROUPS, *known_keys())) or f"groups: {', '.join(_GROUPS)}")
    cause = f"; {error.__cause__}" if error.__cause__ is not None else ""
    key = str(getattr(error, "full_key", None) or "command line")
    return SpecError.single(key, f"{' '.join(lines)}{cause}")


def _options_hint(group: str, option: str, options: Sequence[str]) -> str:
    hint = "; ".join(part for part in (nearest(option, options), f"there are: {', '.join(sorted(options))}") if part)
    # a launcher that is not installed is simply not listed
    return f"{hint}; other launchers come in packages of their own, such as hydra-ray-launcher" if group == _LAUNCHERS else hint
