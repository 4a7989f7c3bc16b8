// What one operation of the union costs without a mount, a kernel or a disk: nanoseconds of processor time an
// operation, one thread, over an empty view. Usage: union_bench [COUNT]. The budget is 2,000 ns for a typical
// operation.
#include "fuse/arena.h"
#include "fuse/change_set.h"
#include "fuse/union_fs.h"
#include "support/fake_view.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

/// Places data nowhere.
class NullKeeper final : public Keeper {
public:
    Result<void> reserve(std::uint64_t, std::uint64_t) override { return {}; }
    Result<std::uint64_t> place(std::span<const std::byte> data, std::uint64_t previous_end) override {
        const std::uint64_t at = previous_end != 0 && previous_end == end_ ? end_ : end_ + 1;
        end_ = at + data.size();
        return at;
    }
    Result<void> overwrite(std::uint64_t, std::span<const std::byte>) override { return {}; }
    bool may_overwrite(std::uint64_t, std::uint64_t) const override { return false; }
    Result<void> load(std::uint64_t, std::span<std::byte>) const override { return {}; }
    void release(std::uint64_t, std::uint64_t) override {}
    void append(const change::Change&) noexcept override {}
    Result<void> sync() override { return {}; }
    Usage usage() const override { return {}; }

private:
    std::uint64_t end_ = 1;
};

double processor_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

void measure(const char* what, int count, const std::function<void(int)>& operation) {
    const double begin = processor_ns();
    for (int number = 0; number < count; ++number) operation(number);
    std::printf("%-28s %8.0f ns\n", what, (processor_ns() - begin) / count);
}

std::string name_of(int number) {
    return "file-" + std::to_string(number);
}

}  // namespace

int main(int argc, char** argv) {
    const int count = argc > 1 ? std::atoi(argv[1]) : 100'000;
    const test::FakeView view;
    const auto arena = *Arena::create();
    ChangeSet changes(*arena, view);
    NullKeeper keeper;
    UnionFs fs(view, changes, &keeper);
    const std::vector<std::byte> data(128);
    const auto node_of = [](int number) { return kFirstNewNode + static_cast<NodeId>(number); };

    measure("create", count, [&](int number) { (void)fs.make(kRootNode, name_of(number), {.mode = S_IFREG}, {}); });
    measure("write 128 bytes", count,
            [&](int number) { (void)fs.write(node_of(number), 0, data, UnionFs::WriteBy::privileged); });
    measure("append 128 bytes", count,
            [&](int number) { (void)fs.write(node_of(0), 128U * number, data, UnionFs::WriteBy::privileged); });
    measure("write in random places", count, [&](int number) {
        (void)fs.write(node_of(1), static_cast<std::uint64_t>(number) * 7919 % 1'000'003 * 512, data,
                       UnionFs::WriteBy::privileged);
    });
    std::vector<std::byte> out(4096);
    measure("read of 4 KiB, 9 pieces", count, [&](int number) {
        (void)fs.read(node_of(1), static_cast<std::uint64_t>(number) * 104'729 % 100'000 * 512, out);
    });
    measure("lookup", count, [&](int number) { (void)fs.lookup(kRootNode, name_of(number)); });
    measure("lookup of nothing", count, [&](int number) { (void)fs.lookup(kRootNode, name_of(count + number)); });
    measure("attributes", count, [&](int number) { (void)fs.attributes(node_of(number)); });
    measure("chmod", count, [&](int number) { (void)fs.set_attributes(node_of(number), {.mode = 0600}); });
    measure("set xattr", count, [&](int number) { (void)fs.set_xattr(node_of(number), "user.x", "value", 0); });
    std::uint64_t listed = 0;
    std::uint64_t cookie = 0;
    measure("list, an entry", count, [&](int number) {
        if (number % 100 != 0) return;
        int left = 100;
        (void)fs.list(kRootNode, cookie, [&](const ListedEntry& entry) {
            cookie = entry.next_cookie;
            ++listed;
            return --left > 0;
        });
    });
    measure("rename", count, [&](int number) {
        (void)fs.rename({kRootNode, name_of(number)}, {kRootNode, "to-" + std::to_string(number)}, {});
    });
    measure("unlink", count, [&](int number) { (void)fs.unlink(kRootNode, "to-" + std::to_string(number)); });
    const auto counts = changes.counts();
    measure("forget", count, [&](int number) { fs.forget(node_of(number), 2); });
    std::printf("listed %lu; %lu nodes, %lu extents, %.1f MB of arena\n", listed, counts.nodes, counts.extents,
                static_cast<double>(counts.arena_bytes) / 1e6);
    return 0;
}
