// The log of a mount, as bytes behind a good header (mode 0), or as payloads in good frames (mode 1), so that what
// comes after the checksums is reached: decoding, applying, the bounds of extents, walking the state.
// Needs clang 16 or newer: older ones cannot compile std::expected.
#include "fuse/change_walk.h"
#include "fuse/log_format.h"
#include "fuse/mount_state.h"
#include "store/error.h"
#include "store/file.h"
#include "support/memory_view.h"

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

const store::TreeDigest& tree() {
    static const store::TreeDigest digest{store::Digest::of(store::as_bytes("fuzz"))};
    return digest;
}

const std::string& folder() {
    static const std::string path = [] {
        std::string name = "/dev/shm/log_fuzz_XXXXXX";
        if (!::mkdtemp(name.data())) std::abort();
        store::File extents = store::File::create(name + "/extents");
        extents.truncate(1 << 20);
        return name;
    }();
    return path;
}

std::vector<std::byte> log_of(std::span<const std::byte> input, bool frames) {
    log_format::Header header = log_format::make_header(log_format::kLogMagic, tree(), 1, {});
    header.salt = 0;
    const auto checked = log_format::bytes_of(header).first(offsetof(log_format::Header, checksum));
    header.checksum = log_format::checksum_of(checked, 0);
    const auto bytes = log_format::bytes_of(header);
    std::vector<std::byte> log(bytes.begin(), bytes.end());
    if (!frames) {
        log.insert(log.end(), input.begin(), input.end());
        return log;
    }
    std::uint64_t chain = header.checksum;
    std::uint64_t sequence = 0;
    while (input.size() > 1) {
        const std::size_t size = std::min<std::size_t>(std::to_integer<std::size_t>(input[0]) + 1, input.size() - 1);
        std::vector<std::byte> record(log_format::kFrameBytes);
        record.insert(record.end(), input.begin() + 1, input.begin() + 1 + static_cast<std::ptrdiff_t>(size));
        chain = log_format::seal(record, ++sequence, chain);
        log.insert(log.end(), record.begin(), record.end());
        input = input.subspan(1 + size);
    }
    return log;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    static const test::MemoryView view = test::small_view();
    const auto input = std::as_bytes(std::span(data, size)).subspan(1);
    if (const auto change = change::decode(input)) {
        std::vector<std::byte> again;
        change::encode(*change, again);
        if (!std::equal(again.begin(), again.end(), input.begin(), input.end())) std::abort();
    }
    const std::string path = folder() + "/log.1";
    ::unlink(path.c_str());
    store::File::create(path).append(log_of(input, data[0] % 2 != 0));
    try {
        const auto state =
            MountState::open(folder(), tree(), view, {.is_read_only = true, .log = {}, .boot = log_format::BootId{}});
        std::uint64_t names = 0;
        for_each_changed_node(state->changes(), [&](const ChangedNode& node) {
            if (!S_ISDIR(node.attributes.mode)) return;
            for_each_changed_name(state->changes(), node.attributes.node, [&](const ChangedName&) { ++names; });
        });
        state->changes().checkpoint([](const change::Change&) {});
    } catch (const store::Error&) {
        // Refused, in one line.
    }
    return 0;
}
