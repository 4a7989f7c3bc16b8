#pragma once

#include "store/blob_source.h"

#include <memory>
#include <string>

namespace lamina::store {

/// A folder as one image of one layer: all that is below it, with owners, modes, times, xattrs, devices, hard links
/// among its own files, and holes. Sockets have no place in a layer and are left out. The same folder gives the same
/// tar: names are sorted by their bytes.
///
/// No link is followed, whatever happens to the folder meanwhile. A file that changes while it is read is an error
/// (unavailable), as are names that would mean a deletion in a layer (".wh.", malformed). SELinux labels are the
/// machine's, not the folder's, and stay behind.
class DirectorySource : public ImageSource {
public:
    explicit DirectorySource(std::string folder);
    std::vector<SourceImage> images() override;
    std::unique_ptr<ByteSource> open_layer(std::size_t image, std::size_t layer) override;

private:
    std::string folder_;
};

}  // namespace lamina::store
