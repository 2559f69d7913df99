"""What the workers of a pool do; see `evomerge.common.events`."""

from evomerge.common.events import Event as Event
from evomerge.common.events import Watch as Watch
