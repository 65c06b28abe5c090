"""What happens at every refusal, whichever protocol tells of it: it is counted, and the operator's log gets a line."""

import logging

from broker.errors import BrokerCode
from broker.reasons import Refusal, codes_of, told
from broker.service import Broker
from broker.status import problem_of
from broker.wire.bodies import Problem

logger = logging.getLogger("cloister.broker.http")


def note(broker: Broker, error: Refusal, correlation_id: str) -> Problem:
    """Count the refusal, log it, and say it as a problem document."""
    problem = problem_of(error, correlation_id)
    asked_for_nonce = problem.code == BrokerCode.DPOP_NONCE  # every client's first request: no refusal to speak of
    if not asked_for_nonce:
        broker.metrics.refused(problem.code)
    level = logging.ERROR if problem.status >= 500 and problem.status != 503 else logging.INFO
    level = logging.DEBUG if asked_for_nonce else level
    extra = {"codes": list(codes_of(error)), "why": told(error), "correlation_id": correlation_id}
    logger.log(level, "refused", extra=extra)
    return problem
