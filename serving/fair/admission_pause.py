"""The longest time that a client with waiting requests went without an admission.

A gap in service may be small while a client starves: others with little demand each may take turns before it.
This measure is in seconds and needs no reference.
"""

from serving.request import ClientId


class AdmissionPauseMeter:
    """Measures each client's longest pause between admissions while it waits, from the start of waiting on.

    Attributes:
      longest_s: by client.
    """

    def __init__(self) -> None:
        self.longest_s: dict[ClientId, float] = {}
        self._since_s: dict[ClientId, float] = {}  # of clients that wait

    def join(self, client: ClientId, now_s: float) -> None:
        """The client starts to wait."""
        self._since_s[client] = now_s

    def admit(self, client: ClientId, now_s: float) -> None:
        """A request of the client is admitted."""
        self._look(client, now_s)
        self._since_s[client] = now_s

    def leave(self, client: ClientId, now_s: float) -> None:
        """The client has no waiting request left."""
        self._look(client, now_s)
        del self._since_s[client]

    def until(self, now_s: float) -> dict[ClientId, float]:
        """The longest pauses by client, with those that go on at `now_s`."""
        for client in self._since_s:
            self._look(client, now_s)
        return self.longest_s

    def _look(self, client: ClientId, now_s: float) -> None:
        pause_s = now_s - self._since_s[client]
        self.longest_s[client] = max(pause_s, self.longest_s.get(client, 0.0))
