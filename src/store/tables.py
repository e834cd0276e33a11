"""What stands in the database, and how an older one becomes today's. Knows nothing about addresses or errors."""

import sqlalchemy as sa

SCHEMA_VERSION = 3

metadata = sa.MetaData()
annotations = sa.Table(
    "annotations",
    metadata,
    sa.Column("item", sa.String(64), nullable=False),
    sa.Column("annotator", sa.String(300), nullable=False),
    sa.Column("prompt_hash", sa.String(64), nullable=False),
    sa.Column("pass_index", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("task", sa.String(100), nullable=False),
    sa.Column("label", sa.Text),
    sa.Column("failure", sa.String(30)),
    sa.Column("confidence", sa.Float),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("cost_usd", sa.Float, nullable=False),
    sa.Column("tokens_in", sa.Integer, nullable=False),
    sa.Column("tokens_out", sa.Integer, nullable=False),
    sa.Column("latency_s", sa.Float, nullable=False),
    sa.Column("created_at", sa.DateTime, nullable=False),
    sa.Column("model", sa.String(300), nullable=False),
    sa.Column("provider", sa.String(300), nullable=False),
    sa.Column("shown_hash", sa.String(64), nullable=False),
    sa.Column("reply", sa.Text, nullable=False),
    sa.Column("task_version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("job", sa.String(64), nullable=False, server_default=""),
    # The annotator and its prompt come first: every look-up is "what did this one answer so far".
    sa.PrimaryKeyConstraint("annotator", "prompt_hash", "item", "pass_index", "attempt"),
)
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("annotator", sa.String(300), nullable=False),
    sa.Column("prompt_hash", sa.String(64), nullable=False),
    sa.Column("item", sa.String(64), nullable=False),
    sa.Column("pass_index", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("worst_usd", sa.Float, nullable=False),
    sa.Column("task", sa.String(100), nullable=False),
    sa.Column("task_version", sa.Integer, nullable=False),
    sa.Column("job", sa.String(64), nullable=False),
    sa.PrimaryKeyConstraint("annotator", "prompt_hash", "item", "pass_index"),
    sqlite_with_rowid=False,  # one tree to write instead of two
)
# When each process that holds claims was last heard of.
owners = sa.Table("owners", metadata, sa.Column("owner", sa.String(100), primary_key=True),
                  sa.Column("beat_at", sa.DateTime, nullable=False))
# Every step of every item that was decided on. Rows lie in the order in which they were written, so that a million of
# them are appended and not sorted in.
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("request", sa.String(32), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("item", sa.String(64), nullable=False),
    sa.Column("task", sa.String(100), nullable=False),
    sa.Column("task_version", sa.Integer, nullable=False),
    sa.Column("student", sa.String(300), nullable=False),
    sa.Column("client", sa.String(100), nullable=False),
    # Packed doubles. Half of that would round, and a confidence that lies on the threshold, as those of an isotonic
    # calibrator do, could fall below it when decisions are replayed.
    sa.Column("probabilities", sa.LargeBinary, nullable=False),
    sa.Column("answer", sa.Text),
    sa.Column("probability", sa.Double),
    sa.Column("route", sa.String(30), nullable=False),
    sa.Column("escalated", sa.String(30)),
    sa.Column("human", sa.String(30)),
    sa.Column("annotator", sa.String(300), nullable=False),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("latency_s", sa.Double, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),  # microseconds since 1970, UTC: a third of a date's bytes
)
sa.Index("decisions_of_request", decisions.c.request, decisions.c.position, decisions.c.step, unique=True)
sa.Index("decisions_by_time", decisions.c.created_at)
_unanswered = decisions.c.answer.is_(None)
sa.Index("decisions_unanswered", decisions.c.task, decisions.c.task_version, decisions.c.created_at,
         sqlite_where=_unanswered, postgresql_where=_unanswered)
versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))


def upgrade(connection: sa.Connection, version: int) -> None:
    """Bring the tables of an earlier `version` to today's; nothing that they hold is changed."""
    if version < 2:
        # Two columns with what they mean for older rows.
        for column in ("task_version INTEGER NOT NULL DEFAULT 1", "job VARCHAR(64) NOT NULL DEFAULT ''"):
            connection.exec_driver_sql(f"ALTER TABLE annotations ADD COLUMN {column}")
        metadata.create_all(connection, tables=[claims, owners], checkfirst=False)
    if version < 3:
        metadata.create_all(connection, tables=[decisions], checkfirst=False)
    connection.execute(versions.update(), {"version": SCHEMA_VERSION})
