# SPDX-License-Identifier: Apache-2.0
"""Training data, made while the model trains: processes that write, tokenize and pack conversations into rows."""

import multiprocessing
import os
import random
import threading

import numpy as np

ROW_LENGTH = 1026  # 1024 inputs, and the two tokens after the last one that the main model and the MTP layer predict
CHUNK_ROWS = 512
BATCH_DOCUMENTS = 256  # tokenized in one call
CHUNKS_AHEAD = 32  # in the queue; a producer waits when it is full


def token_documents(tokenizer, rng):
    """Endless (ids, mask) of conversations; the mask is 1 where the model has to learn to write."""
    import tasks  # here, so that a user of Rows alone needs no task
    import text

    while True:
        documents = [text.document(tasks.sample(rng)) for _ in range(BATCH_DOCUMENTS)]
        flat = [segment for document in documents for segment, _ in document]
        encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
        for document in documents:
            ids, mask = [], []
            for _, is_target in document:
                segment = next(encoded).ids
                ids += segment
                mask += [is_target] * len(segment)
            yield ids, mask


def pack(documents, num_rows, row_length=ROW_LENGTH):
    """int16 [2, num_rows, row_length], ids and mask. Each row starts with a document's start: one that the end
    of a row cuts off begins the next row again, so that no document's end is lost but those longer than a row."""
    rows = np.zeros((2, num_rows, row_length), np.int16)
    cut = None
    for row in range(num_rows):
        filled = 0
        while filled < row_length:
            ids, mask = cut or next(documents)
            count = min(len(ids), row_length - filled)
            rows[0, row, filled : filled + count] = ids[:count]
            rows[1, row, filled : filled + count] = mask[:count]
            cut = (ids, mask) if count < len(ids) and filled > 0 else None
            filled += count
    return rows


def _produce(queue, tokenizer_path, seed):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.nice(10)  # the compiler and the training loop come first
    from tokenizers import Tokenizer

    documents = token_documents(Tokenizer.from_file(tokenizer_path), random.Random(seed))
    while True:
        queue.put(pack(documents, CHUNK_ROWS))


class Producers:
    """Processes that make chunks, and a thread that receives them.

    Lifecycle: construct before CUDA is touched (the processes are forked), take(), stop().
    """

    def __init__(self, count, tokenizer_path, seed):
        context = multiprocessing.get_context("fork")
        self._queue = context.Queue(CHUNKS_AHEAD)
        self._processes = [
            context.Process(target=_produce, args=(self._queue, tokenizer_path, f"{seed}/{i}"), daemon=True)
            for i in range(count)
        ]
        for process in self._processes:
            process.start()
        self._received = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        while True:
            chunk = self._queue.get()
            with self._arrived:
                self._received.append(chunk)
                self._arrived.notify()

    def take(self, at_least=0):
        """The chunks that came since the last call; waits for `at_least`. A dead producer is an error."""
        with self._arrived:
            while len(self._received) < at_least:
                self._arrived.wait(timeout=1)
                self._check()
            self._check()
            chunks, self._received = self._received, []
        return chunks

    def _check(self):
        for process in self._processes:
            if process.exitcode is not None:
                raise RuntimeError(f"a data process ended with {process.exitcode}; its error stands above")

    def stop(self):
        for process in self._processes:
            process.terminate()
