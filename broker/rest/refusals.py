"""What happens at every refusal, whichever protocol tells of it: it is counted, and the operator's log gets a line."""

import logging

from broker.calls import REFUSALS
from broker.errors import BrokerCode, BrokerError
from broker.reasons import Refusal, codes_of, told
from broker.service import Broker
from broker.status import problem_of
from broker.wire.bodies import Problem
from policies.errors import BundleError

logger = logging.getLogger("cloister.broker.http")


def as_refusal(error: Exception, correlation_id: str) -> Refusal:
    """What the caller is told of whatever a handler raised. Of what nobody foresaw he gets one code; the operator gets
    its type, never its text.
    """
    if isinstance(error, REFUSALS):
        return error
    if isinstance(error, BundleError):
        logger.error("policy.invalid", extra={"why": str(error), "correlation_id": correlation_id})
        return BrokerError(BrokerCode.CONFIG_INVALID, str(error), codes=tuple(str(e.code) for e in error.all))
    logger.error("broker.internal", exc_info=error, extra={"correlation_id": correlation_id})
    return BrokerError(BrokerCode.BROKER_INTERNAL, type(error).__name__)


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
