"""Start llama.cpp's HTTP server (OpenAI API, continuous batching) in this process, from the wheel xllamacpp.

Runs in the environment envs/llamacpp.txt. Every sequence has the whole context length: llama.cpp divides its context
among the sequences, so it is given their product.
"""

from __future__ import annotations

import argparse
import signal
import threading

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens a sequence")
    parser.add_argument("--prefix-cache", action="store_true")
    args = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_parallel = args.sequences
    params.n_ctx = args.sequences * args.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.cont_batching = True
    params.cache_prompt = args.prefix_cache
    params.endpoint_metrics = True
    params.ui = False
    params.offline = True

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, xllamacpp.get_system_info(), flush=True)
    stop.wait()
    del server


if __name__ == "__main__":
    main()
