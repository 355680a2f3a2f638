"""MLflow's SQLite database: made as a whole or not at all, and recognised where it is not sound.

MLflow makes its tables by some fifty migrations in a row, which no transaction holds together: a
process that dies among them, or a second one that starts meanwhile, leaves a database that MLflow
can neither use nor repair.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from incontext_linear.files import remove_temporaries, replace_atomically
from incontext_linear.runs.locks import exclusive

logger = logging.getLogger(__name__)

_PREFIX = "sqlite:///"
_PATIENCE = 120.0  # seconds that another process may take to make the database


class DatabaseError(RuntimeError):
    """MLflow cannot use the database that lies there; the message says what to do."""


def database_file(uri: str | None) -> Path | None:
    """The file of an SQLite URI; None of any other, or if it is in memory."""
    if not isinstance(uri, str) or not uri.startswith(_PREFIX):
        return None
    path = uri.removeprefix(_PREFIX).partition("?")[0]
    return None if not path or path.startswith((":memory:", "file:")) else Path(path)


def ensure_database(path: Path, experiment: str) -> None:
    """Make MLflow's database where there is none; check the one that is there.

    Args:
        path: its file.
        experiment: made together with the tables: two processes that both do so later collide.

    Raises:
        DatabaseError: if what lies there is no database, is not whole, or is of another version.
        LockedError: if another process is still making it after two minutes.
        OSError: naming the path, if it cannot be written.
    """
    if _is_missing(path):
        with exclusive(path.with_name(f".{path.name}.lock"), _PATIENCE):
            if _is_missing(path):  # still, now that nobody else is making it
                remove_temporaries(path.parent, below=False)
                logger.info("Making MLflow's database %s", path)
                replace_atomically(path, lambda temporary: _make(temporary, path, experiment))
    _check(path)


def _is_missing(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _make(temporary: Path, path: Path, experiment: str) -> None:
    """Run MLflow's migrations on a file that nobody knows of yet, without waiting for the disk."""
    import sqlalchemy
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = f"{_PREFIX}{temporary}"
    engine = sqlalchemy.create_engine(uri)
    sqlalchemy.event.listen(
        engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF")
    )
    log = logging.getLogger("mlflow.store.db.utils")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        utils._initialize_tables(engine)
        store = SqlAlchemyStore(uri, str(path.parent / "mlruns"))
        store.create_experiment(experiment)
        store.engine.dispose()
    except sqlalchemy.exc.OperationalError as error:
        raise DatabaseError(f"MLflow's database {path} cannot be made: {error.orig}") from None
    finally:
        log.setLevel(level)
        engine.dispose()


def _check(path: Path) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    away = f"move {path} away (its runs stay in it), and a new one is made"
    try:
        # For writing, since what a killed process began is rolled back on opening.
        uri = f"file:{quote(str(path))}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {name for (name,) in connection.execute(query)}
            found = (
                [name for (name,) in connection.execute("SELECT version_num FROM alembic_version")]
                if "alembic_version" in tables
                else []
            )
    except sqlite3.OperationalError as error:
        raise DatabaseError(f"MLflow's database {path} cannot be opened: {error}") from None
    except sqlite3.DatabaseError as error:
        raise DatabaseError(f"{path} is no database of MLflow ({error}): {away}") from None
    expected = _get_latest_schema_revision()
    if any(name.startswith("_alembic_tmp_") for name in tables) or len(found) != 1:
        raise DatabaseError(f"{path} was left half-made by a process that was interrupted: {away}")
    if found[0] == expected:
        return
    if _is_known(found[0]):
        raise DatabaseError(
            f"{path} is of an older MLflow, or was left half-made: back it up and run "
            f"`mlflow db upgrade {_PREFIX}{path}`, or {away}"
        )
    raise DatabaseError(
        f"{path} is of a newer MLflow than this one (schema {found[0]}, not {expected}): update "
        f"mlflow, or {away}"
    )


def _is_known(revision: str) -> bool:
    """Whether this MLflow has a migration of that name."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(""))
    try:
        return scripts.get_revision(revision) is not None
    except CommandError:
        return False
