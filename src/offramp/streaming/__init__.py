"""A stream of single requests, batched continuously: samples join and leave at exits."""

from offramp.streaming.engine import StreamEngine
from offramp.streaming.request import StreamAnswer, StreamFuture
from offramp.streaming.stats import StreamStats

__all__ = ["StreamAnswer", "StreamEngine", "StreamFuture", "StreamStats"]
