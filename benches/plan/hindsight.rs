//! What an order of layers could reach that knows the changes beforehand.

/// A layer's bytes, from the bottom layer up, and for each change the layers that it touches.
pub(crate) struct Known {
    pub(crate) sizes: Vec<u64>,
    pub(crate) touched: Vec<Vec<usize>>,
}

impl Known {
    /// Bytes from the lowest layer that is touched upwards, summed up over all changes, in the order of least that a
    /// search finds: from the order that is given it moves one layer at a time while that helps.
    pub(crate) fn least_bytes_above(&self) -> u64 {
        let mut order: Vec<usize> = (0..self.sizes.len()).collect();
        let mut least = self.bytes_above(&order);
        loop {
            let mut better = None;
            for from in 0..order.len() {
                for to in 0..order.len() {
                    let mut moved = order.clone();
                    let layer = moved.remove(from);
                    moved.insert(to, layer);
                    let bytes = self.bytes_above(&moved);
                    if bytes < least {
                        (least, better) = (bytes, Some(moved));
                    }
                }
            }
            match better {
                Some(moved) => order = moved,
                None => return least,
            }
        }
    }

    fn bytes_above(&self, order: &[usize]) -> u64 {
        let mut above = vec![0; order.len()];
        let mut bytes = 0;
        for &layer in order.iter().rev() {
            bytes += self.sizes[layer];
            above[layer] = bytes;
        }
        self.touched.iter().map(|layers| layers.iter().map(|&layer| above[layer]).max().unwrap_or(0)).sum()
    }
}

/// The most changes to installed packages that any order holds within their bounds, each package with its bytes and
/// what may lie from it upwards before it changes, itself included. Every package above another is unpacked with it
/// whatever the plan, so this is the scheduling of jobs with due dates, and Moore and Hodgson's rule is exact.
pub(crate) fn most_within_bounds(mut packages: Vec<(u64, u64)>) -> usize {
    packages.sort_by_key(|&(_, due)| due);
    let mut kept = std::collections::BinaryHeap::new();
    let mut bytes = 0;
    for (size, due) in packages {
        kept.push(size);
        bytes += size;
        if bytes > due {
            bytes -= kept.pop().unwrap_or(0);
        }
    }
    kept.len()
}
