# The rows of bench/report.py under the machine's limits, FMA in GFLOP/s and triad in GB/s:
# gnuplot -e "data='roofline.tsv'; fma=220; triad=40; image='roofline.png'" bench/roofline.gp
set terminal pngcairo noenhanced size 1100,600 font 'sans,11'
set output image
set datafile separator tab
set logscale xy
set xlabel 'multiplications and additions a byte that must be moved'
set ylabel 'GFLOP/s'
set key outside right
set grid lc '#dddddd'
set border 3
set tics nomirror
kernels = system("cut -f 4 '".data."' | sort -u")
# The last column is the kernel's place in that list.
rows(whose) = "< awk -F '\\t' -v kernels='".kernels."' 'BEGIN {n = split(kernels, name, /[ \\n]+/); for (i = 1; i <= n; i++) place[name[i]] = i} $3 == \"".whose."\" {print $0 FS place[$4]}' '".data."'"
least(x, y) = x < y ? x : y
set xrange [0.02:1000]
set yrange [*:2 * fma]
plot least(fma, triad * x) with lines lw 2 lc 'black' title 'measured limit: triad, FMA', \
     rows('ours') using 1:2:5 with points pt 7 ps 1.4 lc variable notitle, \
     rows('eager') using 1:2:5 with points pt 6 ps 1.2 lc variable notitle, \
     for [i = 1:words(kernels)] keyentry with points pt 7 ps 1.4 lc i title word(kernels, i), \
     keyentry with points pt 6 ps 1.2 lc 'black' title 'hollow: eager LibTorch'
