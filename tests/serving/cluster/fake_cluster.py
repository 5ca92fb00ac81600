"""Workers that are only tables, with streams that are late, doubled or torn; and what must come of it."""

import random
from collections import Counter
from dataclasses import dataclass, field

from serving import fair
from serving.cluster.ingress import Ingress
from serving.fair.ledger import SCALE
from serving.request import Delta, Output, Request, Sampling


def token(name, seed, at):
    return random.Random(f"{seed}/{at}").randrange(1000)


def piece(id):
    return f"{id},"


@dataclass
class Attempt:
    """A request at a worker. `told` numbers its deltas; text lags one token behind."""

    send: object
    ids: list = field(default_factory=list)
    told: int = 0
    chars: int = 0
    admitted: bool = False


@dataclass
class Bill:
    """What the twin knows of a dispatch: who, where, what was computed, delivered, and how it ended."""

    client: str
    worker: int
    extend: int | None = None
    delivered: int = 0
    kept: bool | None = None  # the prompt is paid for here; None while it runs


class FakeCluster:
    """Drives an `Ingress` with random events.

    Args:
      name: of the router; limit: live requests of a worker; workers: that are up at first.
    """

    def __init__(self, name, seed, limit=3, max_tries=10**9, workers=3, **options):
        self.rng = random.Random(seed)
        self.ingress = Ingress(fair.make(name, **options), max_tries=max_tries, block_tok=4)
        self.limit, self.now_s, self.count = limit, 0.0, 0
        self.workers, self.mail, self.old_mail = {}, [], []
        self.requests, self.heard, self.outputs = {}, {}, {}
        self.bills, self.ran, self.drains = {}, set(), set()
        self.asked = Counter()
        for _ in range(workers):
            self.join()

    # ---- what may happen ----

    def join(self):
        worker = self.ingress.join(capacity=self.rng.choice([1.0, 2.0]), max_live=self.limit)
        assert worker not in self.workers
        self.workers[worker] = {}

    def lose(self, worker):
        self.ingress.lost(worker, self.now_s)
        del self.workers[worker]
        self.drains.discard(worker)
        for bill in self.bills.values():
            if bill.worker == worker and bill.kept is None:
                bill.kept = False

    def drain(self, worker):
        self.ingress.drain(worker)
        self.drains.add(worker)

    def submit(self):
        rng, id = self.rng, f"r{self.count}"
        self.count += 1
        sampling = Sampling(max_tokens=rng.randint(1, 8), seed=rng.randrange(5), n=rng.choice([1, 1, 3]))
        prompt = [rng.randrange(3)] * rng.randint(1, 12) + [self.count]
        deadline_s = rng.choice([None, None, None, 40.0])
        client, priority = rng.choice("abc"), rng.choice([0, 0, 1])
        request = Request(
            client=client,
            id=id,
            prompt_ids=prompt,
            sampling=sampling,
            deadline_s=deadline_s,
            priority=priority,
        )
        self.requests[id] = request
        self.ingress.submit(request, self.now_s)

    def step(self, worker):
        """One step of an engine: some request begins, or goes on by up to three tokens."""
        if not self.workers[worker]:
            return
        key = self.rng.choice(list(self.workers[worker]))
        attempt = self.workers[worker][key]
        send, request = attempt.send, attempt.send.request
        if not attempt.admitted:
            attempt.admitted = True
            hit = self.rng.randrange(len(request.prompt_ids))
            size = len(request.prompt_ids) + len(request.resume_ids)
            self._post(("admit", request.id, send.attempt, size - hit, hit))
            attempt.ids = list(request.resume_ids)
            return
        left = request.sampling.max_tokens - len(attempt.ids)
        new = [
            token(request.id, request.sampling.seed, len(attempt.ids) + i)
            for i in range(min(left, self.rng.randint(1, 3)))
        ]
        attempt.ids += new
        over = len(attempt.ids) == request.sampling.max_tokens
        text = "".join(map(piece, attempt.ids if over else attempt.ids[:-1]))
        fresh, attempt.chars = text[attempt.chars :], len(text)
        output = _output(request, attempt.ids, text) if over else None
        if over:
            del self.workers[worker][key]
        delta = Delta(request.id, request.client, new, output, text=fresh)
        self._post(("delta", request.id, send.attempt, attempt.told, delta))
        attempt.told += 1

    def _post(self, letter):
        fate = self.rng.random()
        self.mail += [letter] * (2 if fate < 0.1 else 1)
        if letter[0] == "delta" and 0.15 < fate < 0.25:  # torn
            self.mail.remove(letter)
            if fate < 0.2 or letter[4].output is not None:
                self.mail.append(("broken", *letter[1:3]))  # and seen; else the next number tells

    def receive(self, letter):
        kind, name, number = letter[:3]
        bill, live = self.bills[number], self.ingress.live.get(name)
        fresh = live is not None and live.attempt == number
        if kind == "admit":
            extend, hit = letter[3:]
            if fresh and bill.extend is None:
                bill.extend = extend
                self.ran.add((name, live.request.id))
            self.ingress.admitted(name, number, extend_tok=extend, hit_tok=hit, now_s=self.now_s)
        elif kind == "broken":
            if fresh:
                bill.kept = False
            self.ingress.broken(name, number, self.now_s)
        else:
            at, delta = letter[3:]
            if self.rng.random() < 0.1:
                self.old_mail.append(letter)
            if fresh and at == live.next_report:
                bill.delivered += len(delta.ids)
                if delta.ids:
                    self.ran.add((name, live.request.id))
                if delta.output is not None:
                    bill.kept = bill.extend is not None or bill.delivered > 0
            elif fresh and at > live.next_report:
                bill.kept = False
            self.ingress.reported(name, number, at, delta, self.now_s)

    def cancel(self, id):
        self._close_from_here([o for o in self.ingress.live.values() if o.request.id == id])
        self.ingress.cancel(id, self.now_s)

    def expire(self):
        late = [
            o for o in self.ingress.live.values() if o.deadline_s is not None and o.deadline_s <= self.now_s
        ]
        self._close_from_here(late)
        self.ingress.expire(self.now_s)

    def _close_from_here(self, outputs):
        for live in outputs:
            if live.attempt is not None:
                bill = self.bills[live.attempt]
                bill.kept = bill.extend is not None or bill.delivered > 0

    # ---- carrying out ----

    def settle(self):
        for send in self.ingress.dispatch(self.now_s):
            assert send.worker in self.workers
            assert send.worker not in self.drains
            assert send.attempt not in self.bills, "attempts are told apart"
            self.workers[send.worker][send.attempt] = Attempt(send)
            self.bills[send.attempt] = Bill(send.request.client, send.worker)
            assert list(send.request.resume_ids) == self.heard.get(send.request.id, [])
        stops, self.ingress.stops = self.ingress.stops, []
        for stop in stops:
            self.workers.get(stop.worker, {}).pop(stop.attempt, None)
        deltas, self.ingress.deltas = self.ingress.deltas, []
        for delta in deltas:
            name = self.requests[delta.id].names[delta.index]
            assert name not in self.outputs, "nothing after the end, and one end"
            self.heard.setdefault(name, []).extend(delta.ids)
            self.asked[name, "text"] += len(delta.text)
            if delta.output is not None:
                self.outputs[name] = delta.output

    def event(self):
        rng = self.rng
        self.now_s += rng.random()
        what = rng.random()
        up = sorted(self.workers)
        if what < 0.12:
            self.submit()
        elif what < 0.60 and up:
            self.step(rng.choice(up))
        elif what < 0.93 and self.mail:
            self.receive(self.mail.pop(0))
        elif what < 0.95 and self.old_mail:
            self.receive(rng.choice(self.old_mail))
        elif what < 0.965 and self.ingress.live:
            self.cancel(rng.choice(list(self.ingress.live.values())).request.id)
        elif what < 0.97 and up:
            self.lose(rng.choice(up))
        elif what < 0.974 and [w for w in up if w not in self.drains]:
            self.drain(rng.choice([w for w in up if w not in self.drains]))
        elif what < 0.99 and len(up) < 4:
            self.join()
        elif what < 0.995:
            for worker in self.ingress.drained:
                assert not self.workers[worker] or worker in self.drains
                self.lose(worker)
        else:
            self.expire()
        self.settle()

    def finish(self):
        """No more troubles: everything ends."""
        self.join()
        for _ in range(10**6):
            if not self.ingress.live:
                return
            for worker in sorted(self.workers):
                self.step(worker)
            while self.mail:
                self.receive(self.mail.pop(0))
                self.settle()
            self.settle()
        raise AssertionError("it does not end")

    # ---- the twin: everything again, from the history alone ----

    def check_loads(self):
        running = Counter(bill.worker for bill in self.bills.values() if bill.kept is None)
        assert self.ingress.router.load_of == {w: running[w] for w in self.workers}
        assert all(running[w] <= self.limit for w in self.workers)
        waiting = [o for o in self.ingress.live.values() if o.attempt is None]
        room = [w for w in self.workers if running[w] < self.limit and w not in self.drains]
        assert not (waiting and room), "nobody waits while a worker has room"

    def check_answers(self):
        for request in self.requests.values():
            for index, name in enumerate(request.names):
                output, whole = self.outputs[name], request.sampling.max_tokens
                right = [token(name, request.seed_of(index), i) for i in range(whole)]
                heard = self.heard[name]
                assert output.output_ids == heard == right[: len(heard)], "none twice, none missing"
                assert len(output.text) == self.asked[name, "text"]
                assert "".join(map(piece, heard)).startswith(output.text)
                if output.finish_reason == "length":
                    assert heard == right
                    assert output.text == "".join(map(piece, right))
                else:
                    assert output.finish_reason in ("cancel", "deadline", "error")

    def check_ledgers(self):
        """Idle and clean; and who paid for what, summed anew."""
        ingress, router = self.ingress, self.ingress.router
        assert not ingress.live
        assert not ingress._names
        assert not router.dispatched
        assert ingress.queue.pick(self.now_s) is None
        assert not ingress.queue.charge_of
        due = Counter()
        for _, id in self.ran:
            due[self.requests[id].client] += len(self.requests[id].prompt_ids)
        for name, ids in self.heard.items():
            due[self.requests[name.partition("#")[0]].client] += 2 * len(ids)
        assert {c: s // SCALE for c, s in ingress.queue.served().items() if s} == dict(due)
        spent = Counter()
        for bill in self.bills.values():
            assert bill.kept is not None
            assert bill.extend is not None or not bill.delivered, "admitted before its first token"
            spent[bill.client] += 2 * bill.delivered + (bill.extend or 0) * bill.kept
        if hasattr(router, "billed"):
            assert {c: s / SCALE for c, s in router.billed.items() if s} == +spent


def _output(request, ids, text):
    return Output(
        id=request.id,
        client=request.client,
        output_ids=list(ids),
        finish_reason="length",
        prompt_tok=len(request.prompt_ids),
        hit_tok=0,
        arrival_s=0.0,
        admit_s=0.0,
        first_token_s=0.0,
        finish_s=0.0,
        text=text,
    )
