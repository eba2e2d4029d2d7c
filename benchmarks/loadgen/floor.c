// The floor: what a client costs that does nothing but epoll, recv and a stamp for each read; it parses afterwards.
//
//     floor PORT STREAMS ROUNDS        prints one line of JSON
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int64_t sent_ns, *read_ns;
    size_t *read_end, reads, room, size, capacity;
    char *body;
} Request;

typedef struct {
    int fd, round;
    Request *requests;
} Stream;

static const char body[] = "{\"model\":\"paced\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Say something.\"}]}";
static char request[512];
static double *ttft, *gap;
static size_t ttfts, gaps;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void ask(Stream *s) {
    s->requests[s->round].sent_ns = now_ns();
    if (write(s->fd, request, strlen(request)) < 0) perror("write"), exit(1);
}

static int ended(const Request *r) { return r->size >= 5 && !memcmp(r->body + r->size - 5, "0\r\n\r\n", 5); }

static void receive(Stream *s) {
    Request *r = &s->requests[s->round];
    if (r->capacity - r->size < 65536) r->body = realloc(r->body, r->capacity = 2 * r->capacity + 131072);
    ssize_t got = recv(s->fd, r->body + r->size, r->capacity - r->size, 0);
    if (got <= 0) perror("recv"), exit(1);
    if (r->reads == r->room) {
        r->room = 2 * r->room + 256;
        r->read_ns = realloc(r->read_ns, r->room * sizeof *r->read_ns);
        r->read_end = realloc(r->read_end, r->room * sizeof *r->read_end);
    }
    r->read_ns[r->reads] = now_ns();
    r->read_end[r->reads++] = r->size += (size_t)got;
}

static void parse(const Request *r) {
    int64_t last = 0;
    size_t read = 0;
    for (char *at = r->body; (at = memmem(at, (size_t)(r->body + r->size - at), "\"content\":", 10)); at++) {
        char *end = memmem(at, (size_t)(r->body + r->size - at), "\n\n", 2);
        while (r->read_end[read] < (size_t)(end + 2 - r->body)) read++;
        if (last) gap[gaps++] = (double)(r->read_ns[read] - last) / 1e6;
        else ttft[ttfts++] = (double)(r->read_ns[read] - r->sent_ns) / 1e6;
        last = r->read_ns[read];
    }
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static double quantile(double *values, size_t count, double q) { return count ? values[(size_t)(q * (double)(count - 1))] : 0; }

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "floor PORT STREAMS ROUNDS\n"), 2;
    int streams = atoi(argv[2]), rounds = atoi(argv[3]), open = streams, poller = epoll_create1(0), yes = 1;
    sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    Stream *all = calloc((size_t)streams, sizeof *all);
    for (int i = 0; i < streams; i++) {
        all[i] = (Stream){.fd = socket(AF_INET, SOCK_STREAM, 0), .requests = calloc((size_t)rounds, sizeof(Request))};
        if (connect(all[i].fd, (struct sockaddr *)&address, sizeof address)) return perror("connect"), 1;
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poller, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    int64_t start = now_ns();
    for (int i = 0; i < streams; i++) ask(&all[i]);
    struct epoll_event events[1024];
    while (open) {
        int ready = epoll_wait(poller, events, 1024, -1);
        for (int i = 0; i < ready; i++) {
            Stream *s = events[i].data.ptr;
            receive(s);
            if (!ended(&s->requests[s->round])) continue;
            if (++s->round < rounds) ask(s);
            else open--;
        }
    }
    double span = (double)(now_ns() - start) / 1e9;
    getrusage(RUSAGE_SELF, &after);
    double cpu = (double)(after.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_utime.tv_sec - before.ru_stime.tv_sec) +
                 (double)(after.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_utime.tv_usec - before.ru_stime.tv_usec) / 1e6;
    size_t reads = 0, tokens;
    for (int i = 0; i < streams; i++)
        for (int k = 0; k < rounds; k++) reads += all[i].requests[k].reads + 1024;
    ttft = calloc((size_t)streams * (size_t)rounds, sizeof *ttft), gap = calloc(2 * reads, sizeof *gap);
    for (int i = 0; i < streams; i++)
        for (int k = 0; k < rounds; k++) parse(&all[i].requests[k]);
    tokens = ttfts + gaps;
    qsort(ttft, ttfts, sizeof *ttft, ascending);
    qsort(gap, gaps, sizeof *gap, ascending);
    printf("{\"tokens_per_s\": %.1f, \"ttft_ms\": {\"p50\": %.3f, \"p99\": %.3f}, \"gap_ms\": {\"p50\": %.3f, \"p99\": %.3f}, \"cpu_cores\": %.3f}\n", (double)tokens / span,
           quantile(ttft, ttfts, 0.5), quantile(ttft, ttfts, 0.99), quantile(gap, gaps, 0.5), quantile(gap, gaps, 0.99), cpu / span);
}
