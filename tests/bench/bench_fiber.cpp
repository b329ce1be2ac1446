// bench_fiber NAME [COUNT]: the benchmarks of bench_conc.c with Boost.Fiber, where they apply: a fiber has no timeouts of
// its own that could be armed around a call.
#include <boost/fiber/all.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/resource.h>

namespace fibers = boost::fibers;
using boost::fibers::fiber;

static const long warm_up = 10000, batch = 100;

// Default stacks from a pool, as Boost advises where many fibers come and go; plain ones cost a system call each.
static fibers::pooled_fixedsize_stack pool;

static double seconds()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

static void join_all(std::vector<fiber> &all)
{
    for (fiber &f : all)
        f.join();
}

static void yielders(long tasks, long n)
{
    std::vector<fiber> all;
    for (long i = 0; i < tasks; i++)
        all.emplace_back([=] {
            for (long j = 0; j < n / tasks; j++)
                boost::this_fiber::yield();
        });
    join_all(all);
}

static void switch2(long n) { yielders(2, n); }
static void switch1000(long n) { yielders(1000, n); }

static void spawn_join(long n)
{
    for (long i = 0; i < n; i++)
        fiber(std::allocator_arg, pool, [] {}).join();
}

static void spawn_group(long n)
{
    for (long i = 0; i < n; i += batch) {
        std::vector<fiber> all;
        for (long j = 0; j < batch; j++)
            all.emplace_back(std::allocator_arg, pool, [] {});
        join_all(all);
    }
}

static fibers::mutex mutex;

static void lock(long n)
{
    for (long i = 0; i < n; i++) {
        mutex.lock();
        mutex.unlock();
    }
}

static void pass_items(std::size_t capacity, long n)
{
    fibers::buffered_channel<int> items(capacity); // it holds one less
    fiber producer([&] {
        for (long i = 0; i < n; i++)
            items.push(static_cast<int>(i));
    });
    for (long i = 0; i < n; i++)
        items.value_pop();
    producer.join();
}

static void queue1(long n) { pass_items(2, n); }
static void queue1000(long n) { pass_items(1024, n); }

// Stacks of 16 KiB: a million of the default 128 KiB would be 131 GB of address space.
static void sleepers(long n)
{
    long alive = 0, most_alive = 0;
    double start = seconds();
    std::vector<fiber> all;
    for (long i = 0; i < n; i++)
        all.emplace_back(std::allocator_arg, fibers::fixedsize_stack(16384), [&] {
            most_alive = std::max(most_alive, ++alive);
            boost::this_fiber::sleep_for(std::chrono::seconds(1));
            alive--;
        });
    join_all(all);
    std::printf("sleepers_time %.3f s\n", seconds() - start);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    std::printf("sleepers_memory %.3f GB\n", static_cast<double>(usage.ru_maxrss) * 1024 * 1e-9);
    std::printf("sleepers_count %ld tasks\n", n);
    std::printf("sleepers_alive %ld tasks\n", most_alive);
}

static const struct {
    std::string name;
    long count;
    void (*loop)(long n);
} benchmarks[] = {
    {"switch2", 5000000, switch2},      {"switch1000", 5000000, switch1000},
    {"spawn_join", 500000, spawn_join}, {"spawn_group", 500000, spawn_group},
    {"lock", 20000000, lock},           {"queue1", 2000000, queue1},
    {"queue1000", 20000000, queue1000}, {"sleepers", 1000000, sleepers},
};

int main(int argc, char **argv)
{
    for (const auto &b : benchmarks) {
        if (argc < 2)
            std::puts(b.name.c_str());
        else if (b.name == argv[1]) {
            long count = argc > 2 ? std::atol(argv[2]) : b.count;
            if (b.loop == sleepers) {
                sleepers(count);
                return 0;
            }
            b.loop(warm_up);
            double start = seconds();
            b.loop(count);
            std::printf("%s %.2f ns\n", argv[1],
                        (seconds() - start) * 1e9 / static_cast<double>(count));
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
