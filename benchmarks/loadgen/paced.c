// A server whose truth is known: answers a chat completion with its first token after exactly TTFT ms, then one each GAP ms.
// One thread, epoll, a heap of due times; every event carries `sent_ns`, the CLOCK_MONOTONIC moment just before it was sent.
//
//     paced PORT TTFT_MS GAP_MS TOKENS
//
// GET /truth gives what was sent and how late it was against the schedule, from the second request on: some clients send one
// ahead. GET /reset begins to count anew; any other GET is answered with the list of models that clients ask for first.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 1 << 20, CONNECTIONS = 65536, EVENTS = 1024, LATEST_US = 1 << 20 };

typedef struct {
    int fd, token, heap_at;  // token: how many were sent; heap_at: place in the heap, -1 outside
    bool closes;
    int64_t arrived_ns, due_ns, wrote_ns;
    char *request;
    size_t received;
} Connection;

static Connection connections[CONNECTIONS], *heap[CONNECTIONS];
static int waiting, tokens_of_answer, poller;
static int64_t ttft_ns, gap_ns, number;
static int64_t tokens, requests, refused, first_ns, last_ns;  // first_ns: arrival of the second request
static double cpu_before_s;
static uint32_t late_us[LATEST_US];  // histogram of lateness in µs, the last holds all beyond
static uint32_t first_us[LATEST_US];  // histogram of first token - arrival, in µs
static uint32_t gap_us[LATEST_US];  // histogram of token - the one before, in µs

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void place(int at, Connection *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void sift(int at) {
    Connection *c = heap[at];
    for (; at > 0 && heap[(at - 1) / 2]->due_ns > c->due_ns; at = (at - 1) / 2) place(at, heap[(at - 1) / 2]);
    for (;;) {
        int child = 2 * at + 1;
        if (child + 1 < waiting && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (child >= waiting || heap[child]->due_ns >= c->due_ns) break;
        place(at, heap[child]);
        at = child;
    }
    place(at, c);
}

static void unschedule(Connection *c) {
    if (c->heap_at < 0) return;
    int at = c->heap_at;
    c->heap_at = -1;
    if (at == --waiting) return;
    place(at, heap[waiting]);
    sift(at);
}

static void drop(Connection *c) {
    unschedule(c);
    close(c->fd);
    free(c->request);
    c->request = NULL;
}

static void count(uint32_t *histogram, int64_t ns) {
    int64_t us = ns / 1000;
    histogram[us < 0 ? 0 : us >= LATEST_US ? LATEST_US - 1 : us]++;
}

static double quantile_ms(const uint32_t *histogram, double q) {
    int64_t all = 0, seen = 0;
    for (int us = 0; us < LATEST_US; us++) all += histogram[us];
    for (int us = 0; us < LATEST_US; us++)
        if ((seen += histogram[us]) >= q * all && seen) return us / 1e3;
    return 0;
}

// A short write means that the client does not read: the socket holds megabytes. Such a connection is dropped and counted.
static bool sent(Connection *c, const char *bytes, size_t length) {
    if (send(c->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)length) return true;
    refused++;
    drop(c);
    return false;
}

static size_t chunk(char *to, const char *data, size_t length) {
    size_t head = (size_t)sprintf(to, "%zx\r\n", length);
    memcpy(to + head, data, length);
    memcpy(to + head + length, "\r\n", 2);
    return head + length + 2;
}

#define EVENT "data: {\"id\":\"chatcmpl-%lld\",\"object\":\"chat.completion.chunk\",\"created\":1717545600,\"model\":\"paced\","

static void write_token(Connection *c) {
    char data[1024], out[2048];
    int64_t now = now_ns();
    int length = sprintf(data, EVENT "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" the\"},\"logprobs\":null,\"finish_reason\":null}],\"arrived_ns\":%lld,\"sent_ns\":%lld}\n\n",
                         (long long)number, (long long)c->arrived_ns, (long long)now);
    size_t size = chunk(out, data, (size_t)length);
    bool last = ++c->token == tokens_of_answer;
    if (last) {
        length = sprintf(data, EVENT "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n", (long long)number);
        size += chunk(out + size, data, (size_t)length);
        length = sprintf(data, EVENT "\"choices\":[],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n", (long long)number, tokens_of_answer, tokens_of_answer + 16);
        size += chunk(out + size, data, (size_t)length);
        size += chunk(out + size, "data: [DONE]\n\n", 14);
        size += chunk(out + size, "", 0);
    }
    count(late_us, now - c->due_ns);
    if (c->token == 1) count(first_us, now - c->arrived_ns);
    else count(gap_us, now - c->wrote_ns);
    c->wrote_ns = now;
    if (!sent(c, out, size)) return;
    tokens++;
    last_ns = now;
    if (!last) {
        c->due_ns += gap_ns;
        sift(c->heap_at);
    } else if (c->closes) {
        drop(c);
    } else {
        unschedule(c);
        c->received = 0;
    }
}

static void answer(Connection *c, const char *body) {
    char out[4096];
    int length = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    c->received = 0;
    sent(c, out, (size_t)length);
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void tell_truth(Connection *c) {
    char body[1024];
    double cpu_s = cpu_seconds();
    sprintf(body,
            "{\"requests\": %lld, \"tokens\": %lld, \"refused\": %lld, \"first_ns\": %lld, \"last_ns\": %lld, \"cpu_s\": %.3f, \"ttft_ms\": {\"p50\": %.3f, \"p99\": %.3f},"
            " \"gap_ms\": {\"p50\": %.3f, \"p99\": %.3f},"
            " \"late_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}}\n",
            (long long)requests, (long long)tokens, (long long)refused, (long long)first_ns, (long long)last_ns, cpu_s - cpu_before_s, quantile_ms(first_us, 0.5), quantile_ms(first_us, 0.99), quantile_ms(gap_us, 0.5),
            quantile_ms(gap_us, 0.99),
            quantile_ms(late_us, 0.5), quantile_ms(late_us, 0.99), quantile_ms(late_us, 1));
    answer(c, body);
}

static void reset(void) {
    tokens = refused = first_ns = last_ns = 0;
    cpu_before_s = cpu_seconds();
    memset(late_us, 0, sizeof late_us);
    memset(first_us, 0, sizeof first_us);
    memset(gap_us, 0, sizeof gap_us);
}

static void begin(Connection *c) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
    c->arrived_ns = now_ns();
    if (++requests == 2) {
        reset();
        first_ns = c->arrived_ns;
    }
    number++;
    if (!sent(c, head, sizeof head - 1)) return;
    c->token = 0;
    c->due_ns = c->arrived_ns + ttft_ns;
    heap[waiting] = c;
    c->heap_at = waiting++;
    sift(c->heap_at);
}

static void receive(Connection *c) {
    ssize_t got = recv(c->fd, c->request + c->received, REQUEST - c->received - 1, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) drop(c);
        return;
    }
    c->request[c->received += (size_t)got] = 0;
    char *end = strstr(c->request, "\r\n\r\n"), *told = strcasestr(c->request, "\r\ncontent-length:");
    if (!end || c->received < (size_t)(end + 4 - c->request) + (told && told < end ? strtoul(told + 17, NULL, 10) : 0)) return;
    *end = 0;
    c->closes = strcasestr(c->request, "\r\nconnection: close") != NULL;
    if (!strncmp(c->request, "POST", 4)) {
        begin(c);
    } else if (!strncmp(c->request, "GET /truth", 10)) {
        tell_truth(c);
    } else if (!strncmp(c->request, "GET /reset", 10)) {
        reset();
        requests = 0;
        answer(c, "{}");
    } else {
        answer(c, "{\"object\": \"list\", \"data\": [{\"id\": \"paced\", \"object\": \"model\", \"created\": 1717545600, \"owned_by\": \"nobody\", \"max_model_len\": 8192}]}");
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "paced PORT TTFT_MS GAP_MS TOKENS\n"), 2;
    ttft_ns = (int64_t)(atof(argv[2]) * 1e6), gap_ns = (int64_t)(atof(argv[3]) * 1e6), tokens_of_answer = atoi(argv[4]);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("paced"), 1;
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int64_t left = waiting ? heap[0]->due_ns - now_ns() : 1000000000;
        struct timespec wait = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
        int ready = epoll_pwait2(poller, events, EVENTS, &wait, NULL);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) {
                receive(events[i].data.ptr);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                Connection *c = &connections[fd % CONNECTIONS];
                *c = (Connection){.fd = fd, .heap_at = -1, .request = malloc(REQUEST)};
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            }
        }
        // At most one round of what is due now, so that requests are read in between.
        int64_t now = now_ns();
        for (int left_now = waiting; left_now-- && waiting && heap[0]->due_ns <= now;) write_token(heap[0]);
    }
}
