"""The report stage: reads a run folder, writes its page."""

import logging
from pathlib import Path

from hf_instruct.config import Experiment
from hf_instruct.plots import draw_score_histogram, write_figure
from hf_instruct.records import write_text
from hf_instruct.reporting.facts import read_facts
from hf_instruct.reporting.page import render_page
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)


def report(run: RunFolder, experiment: Experiment) -> Path:
    """Write `report.html`, and `scores.png` where there are scores; a run may lack any stage's files.

    Args:
        run: The run folder.
        experiment: What the run is of.

    Returns:
        The page.

    Raises:
        DataError: A file of the run cannot be read as what it should be.
    """
    facts = read_facts(run, experiment)
    scores = {"base": list(facts.base.score_by_id.values()), "tuned": list(facts.tuned.score_by_id.values())}
    if any(scores.values()):
        write_figure(draw_score_histogram(scores, title=facts.name), run.score_plot)
    write_text(run.report, render_page(facts))
    logger.debug("wrote %s", run.report)
    return run.report
