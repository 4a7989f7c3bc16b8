#pragma once

#include "store/file_ops.h"
#include "store/store.h"

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

/// Stores, and images to put into them, for tests of the whole.
namespace lamina::test {

/// A layer tar of regular files: path -> bytes. Folders above them are not listed, so the tree makes them.
using Files = std::map<std::string, std::string>;
std::string layer_tar(const Files& files);

struct NamedImage {
    std::string name;  ///< Empty: none.
    std::vector<Files> layers;
};
/// Writes an OCI layout into `folder` (new); returns the source, "oci:FOLDER".
std::string write_layout(const std::string& folder, const std::vector<NamedImage>& images);

/// Text that compresses about as files do, `size_bytes` of it, its own for each seed.
std::string some_text(std::size_t size_bytes, unsigned seed);

std::vector<store::ImageSummary> import_from(store::Store& store, const std::string& source);
std::string file_of(store::Store& store, const std::string& image, const std::string& path);
/// All problems of a full verify, one a line; empty: sound.
std::string problems_of(store::Store& store);
/// The layers' tars of an image as they come out of a save.
bool has_files(store::Store& store, const std::string& image, const Files& files);

/// Bytes of all regular files below a folder, by st_size.
std::uint64_t bytes_on_disk(const std::string& folder);

/// While it lives, the nth step that changes the disk throws no_space, or all from the nth on.
class FaultAtStep : public store::FaultHook {
public:
    enum class How { once, from_then_on };
    explicit FaultAtStep(long step, How how = How::once);
    ~FaultAtStep() override;
    void before(std::string_view step, std::string_view path) override;
    bool has_failed() const { return has_failed_; }

private:
    std::atomic<long> left_;
    const How how_;
    std::atomic<bool> has_failed_{false};
};

/// Runs `work` in a child that dies by SIGKILL before its nth step. True: it died; false: it ended before.
bool killed_at_step(long step, const std::function<void()>& work);

}  // namespace lamina::test
