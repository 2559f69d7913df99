"""The warnings of a search's log, kept for its summary."""

from __future__ import annotations

import logging
import threading

from evomerge.runs.warned import warned
from evomerge.search.evaluators.serial import failed


def test_warnings_of_this_search_alone_and_without_failed_candidates() -> None:
    before, logger = list(logging.getLogger().handlers), logging.getLogger("evomerge.x")
    with warned() as kept:
        logger.warning("it is %d", 7)
        logger.warning("it is %d\nand more", 8)
        logger.error("[odd] one")
        logger.info("all is well")
        failed(0, 1, {}, ValueError("no"))
        other = threading.Thread(target=logger.warning, args=("of another search",))
        other.start()
        other.join()
    logger.warning("after it")
    assert kept.texts() == {"it is 7": 2, "[odd] one": 1}
    assert logging.getLogger().handlers == before
