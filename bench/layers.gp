# Time and bytes of a training step against the layers that are active, from bench/report.py, with
# what is ideal:
# gnuplot -e "data='layers.tsv'; image='layers.png'" bench/layers.gp
set terminal pngcairo size 1100,480 font 'sans,11'
set output image
set datafile separator tab
shapes = system("cut -f 2 '".data."' | awk '!seen[$0]++'")
rows(kernel, shape) = "< awk -F '\\t' '$1 == \"".kernel."\" && $2 == \"".shape."\"' '".data."'"
set multiplot layout 1,2
set xrange [0:1.05]
set yrange [0:1.2]
set xlabel 'share of the layers that is active'
set grid lc '#dddddd'
set border 3
set tics nomirror
set key top left
do for [kernel in 'step_skip peak_memory'] {
  set ylabel kernel eq 'step_skip' ? 'time of a step / with all layers' : 'peak bytes / with all layers'
  plot for [i = 1:words(shapes)] rows(kernel, word(shapes, i)) using 3:6 with lines dt 2 lc i notitle, \
       for [i = 1:words(shapes)] rows(kernel, word(shapes, i)) using 3:4:5 with yerrorbars pt 7 lc i \
       title word(shapes, i), \
       keyentry with lines dt 2 lc 'black' title 'ideal'
}
unset multiplot
