"""A worker whose process is killed in its fifth step, while the other rank waits for it."""

import os
import signal

from lmhead_vllm import worker


class Worker(worker.Worker):
    steps = 0

    def sample_tokens(self, grammar_output):
        self.steps += 1
        if self.steps == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample_tokens(grammar_output)
